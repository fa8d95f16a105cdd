"""Ulysses attention: trade a part of the sequence for a part of the heads, attend, trade back.

Any number of heads and any lengths: the exchange is uneven where they do not divide by the ranks.
Shapes: L this rank's length, S the whole sequence's, G this rank's share of the H heads.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vidgen.runtime.attention import attention
from vidgen.runtime.parallel.hops import gather_lengths


def ulysses_attention(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    lengths: Sequence[int] | None = None,
) -> Tensor:
    """Attention of this rank's queries over the keys of all ranks in the group.

    `lengths` are the ranks' numbers of tokens; without them the ranks ask each other.
    """
    if not q_BLHD.shape == k_BLHD.shape == v_BLHD.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_BLHD, k_BLHD, v_BLHD))
        raise ValueError(f"Ulysses attention takes q, k, v alike, (B, L, H, D); got {shapes}")
    B, L, H, D = q_BLHD.shape
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if lengths is None:
        lengths = gather_lengths(L, q_BLHD.device, group)
    if len(lengths) != size or lengths[rank] != L:
        raise ValueError(f"rank {rank} of {size} holds {L} tokens, but the lengths are {lengths}")
    heads = [H // size + (r < H % size) for r in range(size)]
    G = heads[rank]

    # One exchange takes q, k and v together.
    qkv_3BLHD = torch.stack((q_BLHD, k_BLHD, v_BLHD))
    sent = [part.reshape(-1) for part in qkv_3BLHD.split(heads, dim=3)]
    received = _exchange(sent, [3 * B * length * G * D for length in lengths], group)
    qkv_3BSGD = torch.cat(
        [x.view(3, B, n, G, D) for x, n in zip(received, lengths, strict=True)], dim=2
    )
    out_BSGD = attention(*qkv_3BSGD.unbind()) if G else qkv_3BSGD[0]

    sent = [part.reshape(-1) for part in out_BSGD.split(list(lengths), dim=1)]
    received = _exchange(sent, [B * L * count * D for count in heads], group)
    return torch.cat([x.view(B, L, n, D) for x, n in zip(received, heads, strict=True)], dim=2)


def _exchange(
    sent: list[Tensor], sizes: list[int], group: dist.ProcessGroup | None
) -> tuple[Tensor, ...]:
    """Give each rank its piece and take one of a known size from each; differentiable."""
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
    received = sent.new_empty(sum(sizes_in))
    # As bytes: not every transport knows every dtype.
    dist.all_to_all_single(
        received.view(torch.uint8),
        sent.view(torch.uint8),
        [n * sent.itemsize for n in sizes_in],
        [n * sent.itemsize for n in sizes_out],
        group=group,
    )
    return received
