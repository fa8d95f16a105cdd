"""Ring attention: every rank keeps its queries while keys and values travel round the group.

The sequence is cut into contiguous parts of any length, one per rank; a part may be empty. Nothing
is padded, so nothing is masked: each hop attends from the local queries to the keys of one part.
Tokens that every rank holds (replicated text) come first and do not travel. Shapes: L this rank's
length, M the length of the part that is passing.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vidgen.runtime.attention import merge_
from vidgen.runtime.attention.backends import Backend
from vidgen.runtime.attention.choice import choose_for_blocks
from vidgen.runtime.parallel.p2p import Hop, Hops, Ring, gather_lengths


def ring_attention(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    lengths: Sequence[int] | None = None,
    replicated: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Attention of this rank's queries over the keys of all ranks in the group.

    The first `replicated` tokens are the same on every rank: they count once as keys, each rank's
    copy as a query of its own, and the gradients of the copies add up to that of the tokens.
    `lengths` are the ranks' numbers of keys besides those; without them the ranks exchange them.
    `backend` is one of the attention table's that has a backward given the whole row's LSE.
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
    return attend_over(ring, q_BLHD, k_BLHD, v_BLHD, replicated, backend)


def attend_over(
    ring: Hops,
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    replicated: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Attention by the hops of a ring, whatever carries them."""
    gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q_BLHD, k_BLHD, v_BLHD))
    # By lengths that all ranks know, so that all choose the same backend.
    longest = max(ring.lengths) + replicated
    chosen = choose_for_blocks(q_BLHD, longest, gradient, backend)
    out: Tensor = _RingAttention.apply(q_BLHD, k_BLHD, v_BLHD, ring, replicated, chosen)
    return out


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BLHD: Tensor,
        k_BLHD: Tensor,
        v_BLHD: Tensor,
        ring: Hops,
        replicated: int,
        backend: Backend,
    ) -> Tensor:
        q, scale = q_BLHD, q_BLHD.shape[-1] ** -0.5
        sums = _RunningSums(q)
        travelling_2BMHD = _pack(k_BLHD[:, replicated:], v_BLHD[:, replicated:])
        k, v = k_BLHD, v_BLHD  # the first block includes the replicated tokens
        hops = len(ring.lengths)
        for done in range(hops):
            coming = _pass_on(ring, travelling_2BMHD, done) if done + 1 < hops else None
            if q.numel() and k.numel():
                sums.add(*backend.over_block(q, k, v, scale))
            if coming is not None:
                travelling_2BMHD = coming.wait()
                k, v = travelling_2BMHD.unbind()
        out = sums.out_BLHD.to(q.dtype)
        ctx.save_for_backward(q, k_BLHD, v_BLHD, out, sums.lse_BHL)
        ctx.ring, ctx.replicated, ctx.backend = ring, replicated, backend
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k_home, v_home, out, lse_BHL = ctx.saved_tensors
        ring: Hops = ctx.ring
        backend: Backend = ctx.backend
        replicated: int = ctx.replicated
        hops, scale = len(ring.lengths), q.shape[-1] ** -0.5
        wide = torch.promote_types(q.dtype, torch.float32)
        dq_BLHD = torch.zeros_like(q, dtype=wide)
        dkv_replicated: Tensor | None = None
        travelling_2BMHD = _pack(k_home[:, replicated:], v_home[:, replicated:])
        k, v = k_home, v_home
        # The gradient of the passing keys travels one hop behind them in fp32 and collects each
        # rank's part; the last hop brings it home.
        behind: Hop | None = None
        for done in range(hops):
            coming = _pass_on(ring, travelling_2BMHD, done) if done + 1 < hops else None
            dkv_2BMHD = k.new_zeros((2, *k.shape), dtype=wide)
            if q.numel() and k.numel():
                given = (gradients[0], q, k, v, out, lse_BHL, scale)
                dq, dkv_2BMHD[0], dkv_2BMHD[1] = backend.block_gradients(*given)
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
        return dq_BLHD.to(q.dtype), dk.to(k_home.dtype), dv.to(v_home.dtype), None, None, None


class _RunningSums:
    """Output and log-sum-exp over the blocks so far, in fp32: rounded once, after the last.

    A backend rounds each block's output to its own dtype; `merge_` weighs those outputs with
    numbers that sum to one, so the error stays that of one rounding.
    """

    def __init__(self, like_BLHD: Tensor) -> None:
        wide = torch.promote_types(like_BLHD.dtype, torch.float32)
        B, L, H, D = like_BLHD.shape
        self._empty = True
        self.out_BLHD = like_BLHD.new_zeros(B, L, H, D, dtype=wide)
        self.lse_BHL = like_BLHD.new_full((B, H, L), -torch.inf, dtype=wide)

    def add(self, out_BLHD: Tensor, lse_BHL: Tensor) -> None:
        if self._empty:
            self._empty = False
            self.out_BLHD.copy_(out_BLHD)
            self.lse_BHL.copy_(lse_BHL)
            return
        merge_(self.out_BLHD, self.lse_BHL, out_BLHD, lse_BHL)


def _pack(k: Tensor, v: Tensor) -> Tensor:
    return torch.stack((k, v))


def _pass_on(ring: Hops, here_2BMHD: Tensor, done: int) -> Hop:
    """Begin the next hop after `done` of them, into a buffer of the incoming part's size."""
    two, B, _, H, D = here_2BMHD.shape
    M = ring.lengths[(ring.rank - done - 1) % len(ring.lengths)]
    return ring.hop(here_2BMHD, here_2BMHD.new_empty(two, B, M, H, D))
