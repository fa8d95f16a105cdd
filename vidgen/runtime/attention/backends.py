"""Attention backends: their capabilities, as data, and how they are called.

To add one: write its forward and backward, declare in a `Backend` what it supports, and add it to
`TABLE` (table.py) at its rank.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vidgen.runtime.attention.mask import BlockMask

HALF = frozenset({torch.bfloat16, torch.float16})
FLOAT = HALF | {torch.float32}
DOUBLE = FLOAT | {torch.float64}

Grads = tuple[Tensor, Tensor, Tensor]  # of q, k, v
Forwarded = tuple[Tensor, Tensor, tuple[Any, ...]]


class Saved(NamedTuple):
    """What a forward saves for its backward."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor
    rest: tuple[Any, ...]


# q, k, v, scale -> out (B, Lq, H, D), LSE (B, H, Lq), and what else its backward needs.
Forward = Callable[[Tensor, Tensor, Tensor, float], Forwarded]
Backward = Callable[[Tensor, Saved, float], Grads]  # from grad_out
# q, k, v, mask, scale -> out and LSE, differentiable by torch.
Run = Callable[[Tensor, Tensor, Tensor, BlockMask | None, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Needs:
    """What one call requires of a backend."""

    device: str
    dtype: torch.dtype
    head_dim: int
    gradient: bool
    lse: bool
    mask: frozenset[str]
    blocks: bool = False  # keys come in blocks; the backward is given out and LSE of the whole row

    @property
    def lse_gradient(self) -> bool:
        return self.lse and self.gradient and not self.blocks


def _nothing_missing() -> str:
    return ""


@dataclass(frozen=True)
class Backend:
    """An implementation of attention for (B, L, H, D) tensors with a contiguous last dimension.

    `run` is differentiable by torch; `forward` and `backward`, which take no mask, may be given
    instead. `block_backward` takes a `Saved` of one block of a row's keys, with out and LSE of the
    whole row and an empty `rest`. `missing` returns what this machine lacks, or an empty string.
    """

    name: str
    devices: frozenset[str]
    dtypes: frozenset[torch.dtype]
    run: Run | None = None
    forward: Forward | None = None
    backward: Backward | None = None
    block_backward: Backward | None = None
    missing: Callable[[], str] = _nothing_missing
    head_dim_multiple: int = 1
    head_dim_max: int = 1024
    gradient: bool = True
    lse: bool = True
    lse_gradient: bool = True
    masks: frozenset[str] = frozenset()
    exact: bool = True  # False: quantised, so it must be selected by name
    last_resort: bool = False  # "auto" selects it if no other backend can serve

    def refusal(self, needs: Needs) -> str | None:
        """Why this backend cannot serve a call, or None if it can."""
        if needs.device not in self.devices:
            return f"runs on {', '.join(sorted(self.devices))}, not {needs.device}"
        if needs.dtype not in self.dtypes:
            return f"does not take {str(needs.dtype).removeprefix('torch.')}"
        if needs.head_dim % self.head_dim_multiple or needs.head_dim > self.head_dim_max:
            return (
                f"head dim {needs.head_dim}: needs a multiple of {self.head_dim_multiple} "
                f"up to {self.head_dim_max}"
            )
        if needs.gradient and not self.gradient:
            return "has no backward"
        if needs.lse and not self.lse:
            return "does not return the log-sum-exp"
        if needs.blocks and needs.gradient and self.block_backward is None:
            return "has no backward that takes the log-sum-exp of a whole row"
        if needs.lse_gradient and not self.lse_gradient:
            return "does not differentiate through the log-sum-exp"
        if needs.lse_gradient and self.run is None and needs.head_dim + PADDING > self.head_dim_max:
            return f"differentiates through the log-sum-exp up to {self.head_dim_max - PADDING}"
        if needs.mask - self.masks:
            return f"does not take a {' and '.join(sorted(needs.mask - self.masks))} mask"
        return self.missing() or None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        if self.run is not None:
            return self.run(q, k, v, mask, scale)
        out, lse = _Attention.apply(q, k, v, scale, self)
        return out, lse

    def over_block(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Out and LSE over one block of a row's keys, without a gradient."""
        with torch.no_grad():
            out, lse = self(rows(q), rows(k), rows(v), None, scale)
        return out, lse.to(torch.promote_types(lse.dtype, torch.float32))

    def block_gradients(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
    ) -> Grads:
        """The gradients from one block of keys, given `out` and `lse` over all blocks.

        exp(score - lse) is the block's part of the whole row's softmax, so the blocks' gradients
        of q sum to the row's.
        """
        assert self.block_backward is not None
        saved = Saved(rows(q), rows(k), rows(v), rows(out), lse.contiguous(), ())
        return self.block_backward(rows(grad_out.to(out.dtype)), saved, scale)


# Columns that carry the gradient of the LSE through a backward that does not support it.
PADDING = 8


class _Attention(torch.autograd.Function):
    """Attention with a backend's own forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        backend: Backend,
    ) -> tuple[Tensor, Tensor]:
        assert backend.forward is not None
        out, lse, rest = backend.forward(q, k, v, scale)
        tensors = [x for x in rest if isinstance(x, Tensor)]
        ctx.save_for_backward(q, k, v, out, lse, *tensors)
        ctx.rest = [None if isinstance(x, Tensor) else x for x in rest]
        ctx.is_tensor = [isinstance(x, Tensor) for x in rest]
        ctx.scale, ctx.backend = scale, backend
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_out, grad_lse = gradients
        q, k, v, out, lse, *tensors = ctx.saved_tensors
        saved = iter(tensors)
        rest = tuple(
            next(saved) if is_tensor else x
            for is_tensor, x in zip(ctx.is_tensor, ctx.rest, strict=True)
        )
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        saved_by_forward = Saved(q, k, v, out, lse, rest)
        grads = gradients_of(ctx.backend, grad_out, grad_lse, saved_by_forward, ctx.scale)
        return (*grads, None, None)


def gradients_of(
    backend: Backend,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    saved: Saved,
    scale: float,
) -> Grads:
    """The gradients of q, k, v from a backward that does not support the gradient of the LSE.

    Such a backward subtracts the row's grad_out . out from every score's gradient; with the LSE's
    gradient it must subtract grad_out . out - grad_lse. Two additional columns do so: out is 1 and
    grad_out is -grad_lse there, and v, q and k are zero. A half-precision value and its remainder
    in two columns give twice the digits.
    """
    assert backend.backward is not None
    q, k, v, out, lse, rest = saved
    grad_out = rows(grad_out.to(out.dtype))
    if grad_lse is None:
        return backend.backward(grad_out, saved, scale)
    size = q.shape[-1]
    carried = -grad_lse.transpose(1, 2)
    coarse = carried.to(out.dtype)
    fine = (carried - coarse.to(carried.dtype)).to(out.dtype)
    nothing = coarse.new_zeros(*coarse.shape, PADDING - 2)
    ones = torch.ones_like(out[..., :2])
    wide_q, wide_k, wide_v = (torch.nn.functional.pad(x, (0, PADDING)) for x in (q, k, v))
    wide_out = torch.cat((out, ones, nothing), dim=-1)
    wider = Saved(wide_q, wide_k, wide_v, wide_out, lse, rest)
    wide_grad_out = torch.cat((grad_out, coarse[..., None], fine[..., None], nothing), dim=-1)
    grads = backend.backward(wide_grad_out, wider, scale)
    grad_q, grad_k, grad_v = (x[..., :size] for x in grads)
    return grad_q, grad_k, grad_v


def rows(x: Tensor) -> Tensor:
    """The tensor with a contiguous last dimension, as kernels need."""
    return x if x.stride(-1) == 1 else x.contiguous()
