"""What a backend of attention is: what it can do, as data, and how it is called.

To add one: write its forward and backward, say in a `Backend` what it takes, put it in `TABLE`
(table.py) at its rank.
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
    """What a plain forward leaves to its backward."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor
    rest: tuple[Any, ...]


# q, k, v, scale -> out (B, Lq, H, D), LSE (B, H, Lq), and what else its backward wants.
Forward = Callable[[Tensor, Tensor, Tensor, float], Forwarded]
Backward = Callable[[Tensor, Saved, float], Grads]  # from grad_out
# q, k, v, mask, scale -> out and LSE, differentiable by torch.
Run = Callable[[Tensor, Tensor, Tensor, BlockMask | None, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Needs:
    """What one call asks of a backend."""

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
    """One way to compute attention, over (B, L, H, D) tensors whose last dimension is contiguous.

    `run` is differentiable as it stands; in its place `forward` and `backward` may be given, the
    plain functions, which know no mask. `block_backward` takes a `Saved` of one block of a row's
    keys with out and LSE of the whole row and nothing in `rest`. `missing` says what this machine
    lacks for the backend, or nothing.
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
    exact: bool = True  # False: quantised, so it must be asked for by name
    last_resort: bool = False  # "auto" takes it where no other can serve

    def refusal(self, needs: Needs) -> str | None:
        """Why this backend cannot serve, or None when it can."""
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
        """What one block of keys contributes, given `out` and `lse` over all blocks.

        exp(score - lse) is the block's part of the whole row's softmax, so the blocks' gradients
        of q add up to the row's.
        """
        assert self.block_backward is not None
        saved = Saved(rows(q), rows(k), rows(v), rows(out), lse.contiguous(), ())
        return self.block_backward(rows(grad_out.to(out.dtype)), saved, scale)


# Columns that carry the gradient of the LSE through a backward that knows nothing of it.
PADDING = 8


class _Attention(torch.autograd.Function):
    """Attention by a backend's own forward and backward."""

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
    """The gradients of q, k, v by a backward that knows nothing of the LSE's.

    Such a backward takes from every score's gradient the row's product grad_out . out; with the
    LSE's it must be grad_out . out - grad_lse. Two more columns, in which out is 1 and grad_out
    holds -grad_lse, make it so, and are zero in v, q and k. Two, because a half-precision number
    and the rest it leaves hold twice the digits.
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
    """As kernels read it: a head's numbers are one run of memory."""
    return x if x.stride(-1) == 1 else x.contiguous()
