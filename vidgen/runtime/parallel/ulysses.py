"""Ulysses attention: exchange parts of the sequence for parts of the heads, attend, and back.

Any number of heads and any lengths: the exchange is uneven where they do not divide by the ranks.
Tokens that every rank holds (text, replicated) stand first: a rank attends with its own heads of
its own copy. Shapes: L this rank's own tokens, R replicated ones, S all ranks' own tokens, G this
rank's share of the H heads.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vidgen.runtime.attention import attention
from vidgen.runtime.parallel import flight_recorder
from vidgen.runtime.parallel.p2p import gather_lengths
from vidgen.runtime.parallel.ring import ring_attention

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def ulysses_attention(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    lengths: Sequence[int] | None = None,
    replicated: int = 0,
    inner: Attention = attention,
) -> Tensor:
    """Attention of this rank's queries over the keys of all ranks in the group.

    The first `replicated` tokens are the same on every rank; `lengths` are the ranks' numbers of
    tokens besides those; without them the ranks exchange them. `inner` attends with this rank's
    heads: over what the group holds, or in a ring of such groups over more.
    """
    if not q_BLHD.shape == k_BLHD.shape == v_BLHD.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_BLHD, k_BLHD, v_BLHD))
        raise ValueError(f"Ulysses attention takes q, k, v alike, (B, L, H, D); got {shapes}")
    B, _, H, D = q_BLHD.shape
    R, L = replicated, q_BLHD.shape[1] - replicated
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if lengths is None:
        lengths = gather_lengths(L, q_BLHD.device, group)
    if len(lengths) != size or lengths[rank] != L:
        raise ValueError(f"rank {rank} of {size} holds {L} tokens, but the lengths are {lengths}")
    heads = shares(H, size)
    first, G = sum(heads[:rank]), heads[rank]

    # One exchange takes q, k and v together.
    qkv_3BLHD = torch.stack((q_BLHD, k_BLHD, v_BLHD))
    sent = [part.reshape(-1) for part in qkv_3BLHD[:, :, R:].split(heads, dim=3)]
    received = _exchange(sent, [3 * B * length * G * D for length in lengths], group)
    qkv_3BSGD = torch.cat(
        [
            qkv_3BLHD[:, :, :R, first : first + G],
            *(x.view(3, B, n, G, D) for x, n in zip(received, lengths, strict=True)),
        ],
        dim=2,
    )
    out_BSGD = inner(*qkv_3BSGD.unbind()) if G else qkv_3BSGD[0]

    # Every rank gets its own tokens back, and these heads of the replicated ones.
    copies, owned = out_BSGD.split([R, sum(lengths)], dim=1)
    sent = [
        torch.cat((copies, part), dim=1).reshape(-1) for part in owned.split(list(lengths), dim=1)
    ]
    received = _exchange(sent, [B * (R + L) * count * D for count in heads], group)
    return torch.cat([x.view(B, R + L, n, D) for x, n in zip(received, heads, strict=True)], dim=2)


def ring_of_ulysses_attention(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    *,
    ring: dist.ProcessGroup,
    ulysses: dist.ProcessGroup,
    lengths: Sequence[int],
    replicated: int = 0,
) -> Tensor:
    """Heads are exchanged among neighbours, keys travel round the ring of such neighbourhoods.

    The ranks of both groups stand in a grid, `ulysses` its rows; `lengths` are those of all the
    grid's ranks, row by row.
    """
    columns, rows = dist.get_world_size(ulysses), dist.get_world_size(ring)
    if len(lengths) != columns * rows:
        raise ValueError(f"{len(lengths)} lengths for a grid of {rows} x {columns} ranks")
    table = [list(lengths[at : at + columns]) for at in range(0, len(lengths), columns)]

    def over_ring(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ring_attention(
            q, k, v, group=ring, lengths=[sum(row) for row in table], replicated=replicated
        )

    return ulysses_attention(
        q_BLHD,
        k_BLHD,
        v_BLHD,
        group=ulysses,
        lengths=table[dist.get_rank(ring)],
        replicated=replicated,
        inner=over_ring,
    )


def shares(count: int, ranks: int) -> list[int]:
    """How many of `count` items each rank takes: at most one apart, the first ranks take more."""
    return [count // ranks + (rank < count % ranks) for rank in range(ranks)]


def _exchange(
    sent: list[Tensor], sizes: list[int], group: dist.ProcessGroup | None
) -> tuple[Tensor, ...]:
    """Send each rank its piece and receive one of a known size from each; differentiable."""
    flat = _AllToAll.apply(torch.cat(sent), [x.numel() for x in sent], sizes, group)
    return flat.split(sizes)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sent: Tensor,
        sizes_out: list[int],
        sizes_in: list[int],
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        ctx.sizes_out, ctx.sizes_in, ctx.group = sizes_out, sizes_in, group
        return _all_to_all(sent, sizes_out, sizes_in, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        back = _all_to_all(gradients[0].contiguous(), ctx.sizes_in, ctx.sizes_out, ctx.group)
        return back, None, None, None


def _all_to_all(
    sent: Tensor, sizes_out: list[int], sizes_in: list[int], group: dist.ProcessGroup | None
) -> Tensor:
    flight_recorder.note(f"all-to-all of {sent.nbytes} bytes")
    received = sent.new_empty(sum(sizes_in))
    # As bytes: not every transport supports every dtype.
    dist.all_to_all_single(
        received.view(torch.uint8),
        sent.view(torch.uint8),
        [n * sent.itemsize for n in sizes_in],
        [n * sent.itemsize for n in sizes_out],
        group=group,
    )
    return received
