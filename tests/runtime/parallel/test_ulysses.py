"""Ulysses attention against one process in fp64: uneven lengths, uneven heads, empty parts."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from vidgen.runtime.parallel import ulysses_attention

# (lengths of the ranks' parts, heads, batch): heads fewer than ranks leave some without any
SPLITS = [
    ([9], 2, 1),
    ([5, 7], 3, 2),
    ([5, 7], 1, 1),
    ([3, 0, 6], 4, 2),
    ([4, 1, 0, 5], 6, 2),
    ([0, 2, 0, 0], 2, 1),
]


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = torch.einsum("blhd,bmhd->bhlm", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), v)


def join(rank: int, world: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)


def check_splits(rank: int, world: int, folder: Path) -> float:
    """The largest error over all splits, each on the first len(lengths) ranks."""
    join(rank, world, folder)
    groups = {n: dist.new_group(list(range(n))) for n in range(1, world + 1)}
    worst = 0.0
    for lengths, heads, batch in SPLITS:
        if rank >= len(lengths):
            continue
        group = groups[len(lengths)]
        torch.manual_seed(heads)
        shape = (batch, sum(lengths), heads, 8)
        whole = [torch.randn(shape, dtype=torch.float64) for _ in range(4)]
        want_in = [x.clone().requires_grad_() for x in whole[:3]]
        want = exact(*want_in)
        wanted = [want, *torch.autograd.grad(want, want_in, whole[3])]
        begin = sum(lengths[:rank])
        here = slice(begin, begin + lengths[rank])
        q, k, v = (x[:, here].clone().requires_grad_() for x in whole[:3])
        out = ulysses_attention(q, k, v, group=group)
        assert torch.equal(out, ulysses_attention(q, k, v, group=group, lengths=lengths))
        got = [out, *torch.autograd.grad(out, (q, k, v), whole[3][:, here])]
        for ours, theirs in zip(got, wanted, strict=True):
            assert ours.shape == theirs[:, here].shape
            if ours.numel():
                worst = max(worst, (ours - theirs[:, here]).abs().max().item())
    # bf16 travels as bytes: what arrives is bit for bit what one process computes.
    half = torch.randn(1, 6, 4, 8).bfloat16()
    dist.broadcast(half, 0)
    mine = half[:, rank : rank + 1] if rank < 3 else half[:, 3:]
    lengths = [1, 1, 1, 3]
    out = ulysses_attention(mine, mine, mine, lengths=lengths)
    from vidgen.runtime.attention import attention

    heads = torch.cat([attention(*[half[:, :, h : h + 1]] * 3) for h in range(4)], dim=2)
    assert torch.equal(out, heads[:, sum(lengths[:rank]) : sum(lengths[: rank + 1])])
    dist.destroy_process_group()
    return worst


def test_any_split_gives_what_one_process_gives(ranks: Any) -> None:
    assert max(ranks(check_splits, 4)) < 1e-13


def refusals(rank: int, world: int, folder: Path) -> None:
    join(rank, world, folder)
    q, k = torch.zeros(1, 3, 1, 4), torch.zeros(1, 2, 1, 4)
    with pytest.raises(ValueError, match="alike"):
        ulysses_attention(q, k, k)
    with pytest.raises(ValueError, match="holds 3 tokens"):
        ulysses_attention(q, q, q, lengths=[2])
    dist.destroy_process_group()


def test_shapes_that_cannot_be_are_refused(ranks: Any) -> None:
    ranks(refusals, 1)
