"""Ring attention against one process in fp64: outputs and all gradients, whatever the split."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from vidgen.runtime.parallel import ring_attention

# (lengths of the ranks' parts, heads, batch)
SPLITS = [
    ([9], 2, 1),
    ([5, 7], 3, 2),
    ([0, 4], 1, 1),
    ([3, 0, 6], 2, 2),
    ([1, 1, 1], 5, 1),
    ([4, 1, 0, 5], 3, 2),
    ([0, 0, 2, 0], 2, 1),
]
BF16 = [4, 1, 0, 40, 27]


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = torch.einsum("blhd,bmhd->bhlm", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), v)


def whole_problem(length: int, heads: int, batch: int) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output, fp64."""
    torch.manual_seed(length * 100 + heads)
    shape = (batch, length, heads, 8)
    return [torch.randn(shape, dtype=torch.float64) for _ in range(4)]


def part(tensors: list[torch.Tensor], lengths: list[int], rank: int) -> list[torch.Tensor]:
    begin = sum(lengths[:rank])
    return [x[:, begin : begin + lengths[rank]].clone() for x in tensors]


def join(rank: int, world: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)


def check_splits(rank: int, world: int, folder: Path, dtype_name: str) -> float:
    """The largest error over all splits, each on the first len(lengths) ranks."""
    join(rank, world, folder)
    dtype = getattr(torch, dtype_name)
    groups = {n: dist.new_group(list(range(n))) for n in range(1, world + 1)}
    worst = 0.0
    for lengths, heads, batch in SPLITS:
        if rank >= len(lengths):
            continue
        whole = whole_problem(sum(lengths), heads, batch)
        want_in = [x.clone().requires_grad_() for x in whole[:3]]
        want = exact(*want_in)
        wanted = [want, *torch.autograd.grad(want, want_in, whole[3])]
        q, k, v, dout = (x.to(dtype) for x in part(whole, lengths, rank))
        for x in (q, k, v):
            x.requires_grad_()
        # Asking the others for their lengths and knowing them must come to the same.
        out = ring_attention(q, k, v, group=groups[len(lengths)])
        known = ring_attention(q, k, v, group=groups[len(lengths)], lengths=lengths)
        assert torch.equal(out, known)
        got = [out, *torch.autograd.grad(out, (q, k, v), dout)]
        for ours, theirs in zip(got, part(wanted, lengths, rank), strict=True):
            assert ours.dtype == dtype
            assert ours.shape == theirs.shape
            if ours.numel():
                worst = max(worst, (ours.double() - theirs).abs().max().item())
    dist.destroy_process_group()
    return worst


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-13), ("float32", 2e-6)])
def test_any_split_gives_what_one_process_gives(ranks: Any, dtype: str, bound: float) -> None:
    assert max(ranks(check_splits, 4, dtype)) < bound


def bf16_errors(rank: int, world: int, folder: Path) -> list[list[float]]:
    """Largest errors of out, dq, dk, dv: of the ring, and of one process in the same dtype."""
    join(rank, world, folder)
    whole = [x.bfloat16() for x in whole_problem(sum(BF16), 2, 2)]
    reference = [x.double().requires_grad_() for x in whole[:3]]
    want = exact(*reference)
    wanted = [want, *torch.autograd.grad(want, reference, whole[3].double())]

    single = [x.clone().requires_grad_() for x in whole[:3]]
    one = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in single)
    ).transpose(1, 2)
    ones = [one, *torch.autograd.grad(one, single, whole[3])]

    q, k, v, dout = part(whole, BF16, rank)
    for x in (q, k, v):
        x.requires_grad_()
    out = ring_attention(q, k, v)
    got = [out, *torch.autograd.grad(out, (q, k, v), dout)]

    def error(ours: torch.Tensor, exactly: torch.Tensor) -> float:
        return (ours.double() - exactly).abs().max().item() if ours.numel() else 0.0

    ring = [error(a, b) for a, b in zip(got, part(wanted, BF16, rank), strict=True)]
    alone = [error(a, b) for a, b in zip(ones, wanted, strict=True)]
    dist.destroy_process_group()
    return [ring, alone]


def test_bf16_error_does_not_grow_with_the_ring(ranks: Any) -> None:
    results = ranks(bf16_errors, len(BF16))
    ring = [max(r[0][i] for r in results) for i in range(4)]
    for ours, alone in zip(ring, results[0][1], strict=True):
        assert ours <= 1.5 * alone


def wrong_lengths(rank: int, world: int, folder: Path) -> list[str]:
    join(rank, world, folder)
    q = torch.zeros(1, 3, 1, 4)
    said = []
    for lengths in ([3], [2, 3] if rank == 0 else [3, 2]):
        with pytest.raises(ValueError, match="lengths") as caught:
            ring_attention(q, q, q, lengths=lengths)
        said.append(str(caught.value))
    dist.barrier()  # a rank that leaves while the other still connects would break it
    dist.destroy_process_group()
    return said


def test_lengths_that_cannot_be_are_refused_before_anything_is_sent(ranks: Any) -> None:
    said = ranks(wrong_lengths, 2)
    assert "1 lengths for a group of 2 ranks" in said[0][0]
    assert "rank 1 of the ring holds 3 keys" in said[1][1]
