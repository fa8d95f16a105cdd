"""Ring attention against one process in fp64: outputs and all gradients, whatever the split."""

from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from vidgen.errors import UserError
from vidgen.runtime.attention import choice
from vidgen.runtime.attention.torch_backends import MATH
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
    ([70, 1, 0, 133], 2, 2),
]
DOUBLE = torch.float64
WIDE = {torch.bfloat16: torch.float32, torch.float32: torch.float32, DOUBLE: DOUBLE}
CASES = [
    *((name, torch.float32) for name in ("native", "sdpa_flash_cpu", "math")),
    *((name, torch.bfloat16) for name in ("native", "sdpa_flash_cpu", "math")),
    *((name, DOUBLE) for name in ("sdpa_flash_cpu", "math")),
]
NO_BACKWARD = "has no backward that takes the log-sum-exp of a whole row"
RESULTS = ("out", "dq", "dk", "dv")


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("blhd,bmhd->bhlm", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), v)


def both_ways(attend: Any, q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def whole_problem(length: int, heads: int, batch: int) -> list[Tensor]:
    """q, k, v and the gradient of the output, fp64."""
    torch.manual_seed(length * 100 + heads)
    shape = (batch, length, heads, 8)
    return [torch.randn(shape, dtype=torch.float64) for _ in range(4)]


def part(tensors: list[Tensor], lengths: list[int], rank: int) -> list[Tensor]:
    begin = sum(lengths[:rank])
    return [x[:, begin : begin + lengths[rank]].clone() for x in tensors]


def join(rank: int, world: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)


def errors(rank: int, world: int, folder: Path) -> list[list[Any]]:
    """[case, error, allowed] of every result, each split on the first len(lengths) ranks."""
    join(rank, world, folder)
    groups = {n: dist.new_group(list(range(n))) for n in range(1, world + 1)}
    found: list[list[Any]] = []
    for (lengths, heads, batch), (name, dtype) in product(SPLITS, CASES):
        if rank >= len(lengths):
            continue
        whole = [x.to(dtype) for x in whole_problem(sum(lengths), heads, batch)]
        wanted, eager = (both_ways(exact, *(x.to(d) for x in whole)) for d in (DOUBLE, dtype))
        q, k, v, dout = part(whole, lengths, rank)
        group = groups[len(lengths)]

        def ring(q: Tensor, k: Tensor, v: Tensor, known: list[int] | None, **how: Any) -> Tensor:
            return ring_attention(q, k, v, lengths=known, **how)

        how = {"group": group, "backend": name}
        # Asking the others for their lengths and knowing them must come to the same.
        got = both_ways(partial(ring, known=None, **how), q, k, v, dout)
        known = both_ways(partial(ring, known=lengths, **how), q, k, v, dout)
        assert all(map(torch.equal, got, known))
        rows = zip(RESULTS, got, part(wanted, lengths, rank), wanted, eager, strict=True)
        for result, ours, theirs, truth, plain in rows:
            assert ours.dtype == dtype
            assert ours.shape == theirs.shape
            error = (ours.double() - theirs).abs().max().item() if ours.numel() else 0.0
            # The error rule, and once the result's own rounding.
            eps, wide = (torch.finfo(d).eps for d in (dtype, WIDE[dtype]))
            tiny = eps / 2 * truth.abs().max() + 16 * wide
            allowed = 2 * (plain.double() - truth).abs().max() + tiny
            found.append([f"{name} {dtype} {lengths} {result}", error, allowed.item()])
    dist.destroy_process_group()
    return found


def test_any_split_obeys_the_error_rule_with_every_backend(ranks: Any) -> None:
    cases = [case for found in ranks(errors, 4) for case in found]
    assert len(cases) == len(RESULTS) * len(CASES) * sum(len(lengths) for lengths, _, _ in SPLITS)
    assert [case for case in cases if not case[1] <= case[2]] == []


def refused_backends(rank: int, world: int, folder: Path) -> list[str]:
    join(rank, world, folder)
    q = torch.zeros(1, 3, 1, 16, requires_grad=True)
    said = []
    for name in ("flex", "cudnn", "mine"):
        with pytest.raises(UserError) as caught:
            ring_attention(q, q, q, backend=name)
        said.append(str(caught.value))
    no_block_backward = replace(MATH, name="math", block_backward=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "TABLE", (no_block_backward,))
        with pytest.raises(UserError) as caught:
            ring_attention(q, q, q, backend="math")
        said.append(str(caught.value))
        with torch.no_grad():  # a forward needs none
            assert ring_attention(q, q, q, backend="math").shape == q.shape
    dist.destroy_process_group()
    return said


def test_a_backend_that_cannot_is_refused_by_name(ranks: Any) -> None:
    (said,) = ranks(refused_backends, 1)
    assert said == [
        "attention backend 'flex' cannot serve this call: it runs on cuda, not cpu",
        "attention backend 'cudnn' cannot serve this call: it runs on cuda, not cpu",
        said[2],
        f"attention backend 'math' cannot serve this call: it {NO_BACKWARD}",
    ]
    assert "'mine' does not exist" in said[2]


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
