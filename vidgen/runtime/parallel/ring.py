"""Ring attention: every rank keeps its queries while keys and values travel round the group.

The sequence is cut into contiguous parts of any length, one a rank; a part may be empty. Nothing is
padded, so nothing is masked: each hop is a dense product of the queries here with the keys that are
passing. Shapes: L this rank's length, M the length of the part that is passing.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vidgen.runtime.attention import attention, merge
from vidgen.runtime.parallel.hops import Hop, Ring, gather_lengths

_ROWS = 1024  # queries whose scores the backward holds at a time


def ring_attention(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    lengths: Sequence[int] | None = None,
) -> Tensor:
    """Attention of this rank's queries over the keys of all ranks in the group.

    `lengths` are the ranks' numbers of keys; without them the ranks ask each other.
    """
    if k_BLHD.shape != v_BLHD.shape or q_BLHD.shape[2:] != k_BLHD.shape[2:]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_BLHD, k_BLHD, v_BLHD))
        raise ValueError(f"ring attention takes (B, L, H, D), k and v alike; got {shapes}")
    if lengths is None:
        lengths = gather_lengths(k_BLHD.shape[1], k_BLHD.device, group)
    ring = Ring(group, lengths)
    if ring.lengths[ring.rank] != k_BLHD.shape[1]:
        raise ValueError(
            f"rank {ring.rank} of the ring holds {k_BLHD.shape[1]} keys, "
            f"but the lengths {ring.lengths} say {ring.lengths[ring.rank]}"
        )
    return _RingAttention.apply(q_BLHD, k_BLHD, v_BLHD, ring)


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, ring: Ring) -> Tensor:
        wide = torch.promote_types(q_BLHD.dtype, torch.float32)
        B, L, H, D = q_BLHD.shape
        out_BLHD = q_BLHD.new_zeros(B, L, H, D, dtype=wide)
        lse_BHL = q_BLHD.new_full((B, H, L), -torch.inf, dtype=wide)
        kv_2BMHD = torch.stack((k_BLHD, v_BLHD))
        for hops in range(ring.size):
            coming = _pass_on(ring, kv_2BMHD, hops) if hops + 1 < ring.size else None
            if L and kv_2BMHD.shape[2]:
                part, sums = attention(q_BLHD, *kv_2BMHD.unbind(), return_lse=True)
                # Merged in fp32 and rounded once, after the last hop: the error does not grow
                # with the number of ranks.
                out_BLHD, lse_BHL = merge(out_BLHD, lse_BHL, part, sums)
            if coming is not None:
                kv_2BMHD = coming.wait()
        out = out_BLHD.to(q_BLHD.dtype)
        ctx.save_for_backward(q_BLHD, k_BLHD, v_BLHD, out, lse_BHL)
        ctx.ring = ring
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse_BHL = ctx.saved_tensors
        ring: Ring = ctx.ring
        wide = lse_BHL.dtype
        dout_BLHD = gradients[0].to(wide)
        delta_BHL = (dout_BLHD * out.to(wide)).sum(-1).transpose(1, 2)
        dq_BLHD = torch.zeros_like(q, dtype=wide)
        kv_2BMHD = torch.stack((k, v))
        # The gradient of the passing keys travels one hop behind them, in fp32, gathering each
        # rank's part; with the last hop it is home.
        behind: Hop | None = None
        for hops in range(ring.size):
            coming = _pass_on(ring, kv_2BMHD, hops) if hops + 1 < ring.size else None
            dkv_2BMHD = torch.zeros_like(kv_2BMHD, dtype=wide)
            _block_backward(q, kv_2BMHD, dout_BLHD, lse_BHL, delta_BHL, dq_BLHD, dkv_2BMHD)
            if behind is not None:
                dkv_2BMHD += behind.wait()
            behind = _pass_on(ring, dkv_2BMHD, hops)
            if coming is not None:
                kv_2BMHD = coming.wait()
        assert behind is not None
        dk, dv = behind.wait().unbind()
        return dq_BLHD.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None


def _pass_on(ring: Ring, here_2BMHD: Tensor, hops: int) -> Hop:
    two, B, _, H, D = here_2BMHD.shape
    M = ring.lengths[ring.owner(hops + 1)]
    return ring.hop(here_2BMHD, here_2BMHD.new_empty(two, B, M, H, D))


def _block_backward(
    q_BLHD: Tensor,
    kv_2BMHD: Tensor,
    dout_BLHD: Tensor,
    lse_BHL: Tensor,
    delta_BHL: Tensor,
    dq_BLHD: Tensor,
    dkv_2BMHD: Tensor,
) -> None:
    """Add this block's part to dq and dkv, in their precision, a few rows of scores at a time.

    With the LSE over all keys, exp(score - LSE) is the block's part of the softmax as it was.
    """
    wide = dq_BLHD.dtype
    if not kv_2BMHD.shape[2]:
        return
    k_BHMD, v_BHMD = (x.to(wide).transpose(1, 2) for x in kv_2BMHD.unbind())
    dk_BHMD, dv_BHMD = (x.transpose(1, 2) for x in dkv_2BMHD.unbind())
    scale = q_BLHD.shape[-1] ** -0.5
    for at in range(0, q_BLHD.shape[1], _ROWS):
        rows = slice(at, at + _ROWS)
        q_BHRD = q_BLHD[:, rows].to(wide).transpose(1, 2)
        dout_BHRD = dout_BLHD[:, rows].transpose(1, 2)
        scores_BHRM = (q_BHRD @ k_BHMD.mT) * scale
        probs_BHRM = torch.exp(scores_BHRM - lse_BHL[:, :, rows, None])
        dv_BHMD += probs_BHRM.mT @ dout_BHRD
        dprobs_BHRM = dout_BHRD @ v_BHMD.mT
        dscores_BHRM = probs_BHRM * (dprobs_BHRM - delta_BHL[:, :, rows, None]) * scale
        dq_BLHD[:, rows] += (dscores_BHRM @ k_BHMD).transpose(1, 2)
        dk_BHMD += dscores_BHRM.mT @ q_BHRD
