"""Ring attention: every rank keeps its queries while keys and values travel round the group.

The sequence is cut into contiguous parts of any length, one a rank; a part may be empty. Nothing is
padded, so nothing is masked: each hop is a dense product of the queries here with the keys that are
passing. Tokens that every rank holds (text, replicated) stand first and do not travel. Shapes: L
this rank's length, M the length of the part that is passing.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vidgen.runtime.parallel.block import BlockKernel, block_kernel
from vidgen.runtime.parallel.hops import Hop, Hops, Ring, gather_lengths


def ring_attention(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    lengths: Sequence[int] | None = None,
    replicated: int = 0,
) -> Tensor:
    """Attention of this rank's queries over the keys of all ranks in the group.

    The first `replicated` tokens are the same on every rank: they count once as keys, each rank's
    copy as a query of its own, and the gradients of the copies add up to that of the tokens.
    `lengths` are the ranks' numbers of keys besides those; without them the ranks ask each other.
    """
    if k_BLHD.shape != v_BLHD.shape or q_BLHD.shape[2:] != k_BLHD.shape[2:]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_BLHD, k_BLHD, v_BLHD))
        raise ValueError(f"ring attention takes (B, L, H, D), k and v alike; got {shapes}")
    own = k_BLHD.shape[1] - replicated
    if lengths is None:
        lengths = gather_lengths(own, k_BLHD.device, group)
    ring = Ring(group, lengths)
    if ring.lengths[ring.rank] != own:
        raise ValueError(
            f"rank {ring.rank} of the ring holds {own} keys, "
            f"but the lengths {ring.lengths} say {ring.lengths[ring.rank]}"
        )
    return attend_over(ring, q_BLHD, k_BLHD, v_BLHD, replicated)


def attend_over(
    ring: Hops, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, replicated: int = 0
) -> Tensor:
    """Attention by the hops of a ring, whatever carries them."""
    out: Tensor = _RingAttention.apply(q_BLHD, k_BLHD, v_BLHD, ring, replicated)
    return out


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, ring: Hops, replicated: int
    ) -> Tensor:
        kernel = block_kernel(q_BLHD)
        q = q_BLHD.to(kernel.dtype)
        sums = _RunningSums(q_BLHD)
        travelling_2BMHD = _pack(k_BLHD[:, replicated:], v_BLHD[:, replicated:])
        k, v = k_BLHD, v_BLHD  # here the replicated tokens join in
        hops = len(ring.lengths)
        for done in range(hops):
            coming = _pass_on(ring, travelling_2BMHD, done) if done + 1 < hops else None
            if q.shape[1] and k.shape[1]:
                sums.add(*kernel.forward(q, k.to(kernel.dtype), v.to(kernel.dtype)))
            if coming is not None:
                travelling_2BMHD = coming.wait()
                k, v = travelling_2BMHD.unbind()
        out = sums.out_BLHD.to(q_BLHD.dtype)
        ctx.save_for_backward(q_BLHD, k_BLHD, v_BLHD, out, sums.lse_BHL)
        ctx.ring, ctx.replicated = ring, replicated
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k_home, v_home, out, lse_BHL = ctx.saved_tensors
        ring: Hops = ctx.ring
        replicated: int = ctx.replicated
        kernel, hops = block_kernel(q), len(ring.lengths)
        wide = torch.promote_types(q.dtype, torch.float32)
        given = _Given(kernel, gradients[0], q, out, lse_BHL)
        dq_BLHD = torch.zeros_like(q, dtype=wide)
        dkv_replicated: Tensor | None = None
        travelling_2BMHD = _pack(k_home[:, replicated:], v_home[:, replicated:])
        k, v = k_home, v_home
        # The gradient of the passing keys travels one hop behind them, in fp32, gathering each
        # rank's part; with the last hop it is home.
        behind: Hop | None = None
        for done in range(hops):
            coming = _pass_on(ring, travelling_2BMHD, done) if done + 1 < hops else None
            dq, dkv_2BMHD = given.block(k, v, wide)
            if dq is not None:
                dq_BLHD += dq
            if done == 0:
                dkv_replicated = dkv_2BMHD[:, :, :replicated]
                dkv_2BMHD = dkv_2BMHD[:, :, replicated:].contiguous()
            if behind is not None:
                dkv_2BMHD += behind.wait()
            behind = _pass_on(ring, dkv_2BMHD, done)
            if coming is not None:
                travelling_2BMHD = coming.wait()
                k, v = travelling_2BMHD.unbind()
        assert behind is not None
        assert dkv_replicated is not None
        dk, dv = torch.cat((dkv_replicated, behind.wait()), dim=2).unbind()
        return dq_BLHD.to(q.dtype), dk.to(k_home.dtype), dv.to(v_home.dtype), None, None


class _RunningSums:
    """Output and log-sum-exp over the blocks so far, in fp32: rounded once, after the last."""

    def __init__(self, like_BLHD: Tensor) -> None:
        wide = torch.promote_types(like_BLHD.dtype, torch.float32)
        B, L, H, D = like_BLHD.shape
        self._empty = True
        self.out_BLHD = like_BLHD.new_zeros(B, L, H, D, dtype=wide)
        self.lse_BHL = like_BLHD.new_full((B, H, L), -torch.inf, dtype=wide)

    def add(self, out_BLHD: Tensor, lse_BHL: Tensor) -> None:
        lse_BHL = lse_BHL.to(self.lse_BHL.dtype)
        if self._empty:
            self._empty = False
            self.out_BLHD.copy_(out_BLHD)
            self.lse_BHL = lse_BHL
            return
        # Neither side is empty, so that no difference of infinities is taken.
        weight_BLH1 = torch.sigmoid(lse_BHL - self.lse_BHL).transpose(1, 2).unsqueeze(-1)
        self.out_BLHD.lerp_(out_BLHD.to(self.out_BLHD.dtype), weight_BLH1)
        self.lse_BHL = torch.logaddexp(self.lse_BHL, lse_BHL)


class _Given:
    """What every block's backward shares: queries; output, its gradient and LSE over all keys."""

    def __init__(
        self, kernel: BlockKernel, dout: Tensor, q: Tensor, out: Tensor, lse_BHL: Tensor
    ) -> None:
        self._kernel = kernel
        self._dout, self._q, self._out = (x.to(kernel.dtype) for x in (dout, q, out))
        self._lse_BHL = lse_BHL

    def block(self, k: Tensor, v: Tensor, wide: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """dq (None if the block is empty) and dk, dv as one (2, B, M, H, D), in `wide`."""
        dtype = self._kernel.dtype
        dkv = k.new_zeros((2, *k.shape), dtype=wide)
        if not self._q.shape[1] or not k.shape[1]:
            return None, dkv
        dq, dk, dv = self._kernel.backward(
            self._dout, self._q, k.to(dtype), v.to(dtype), self._out, self._lse_BHL
        )
        dkv[0], dkv[1] = dk, dv
        return dq, dkv


def _pack(k: Tensor, v: Tensor) -> Tensor:
    return torch.stack((k, v))


def _pass_on(ring: Hops, here_2BMHD: Tensor, done: int) -> Hop:
    """Begin the hop after so many hops are done, into a buffer of the size of what comes."""
    two, B, _, H, D = here_2BMHD.shape
    M = ring.lengths[(ring.rank - done - 1) % len(ring.lengths)]
    return ring.hop(here_2BMHD, here_2BMHD.new_empty(two, B, M, H, D))
