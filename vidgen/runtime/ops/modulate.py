"""Layer norm without weights, then a scale and shift per sample."""

from typing import Any

import torch
from torch import Tensor

from vidgen.runtime.ops import dispatch, kernels
from vidgen.runtime.ops.reference import layer_norm, widen
from vidgen.runtime.ops.registry import define


def modulate(x_BLD: Tensor, shift_BD: Tensor, scale_BD: Tensor, eps: float = 1e-6) -> Tensor:
    """(1 + scale) * layer_norm(x) + shift, in the type of x, computed in float32."""
    if dispatch.choose("modulate", x_BLD) == "reference":
        return reference(x_BLD, shift_BD, scale_BD, eps)
    out_BLD: Tensor = torch.ops.vidgen.modulate(x_BLD, shift_BD, scale_BD, eps)[0]
    return out_BLD


def reference(x_BLD: Tensor, shift_BD: Tensor, scale_BD: Tensor, eps: float) -> Tensor:
    shift, scale = (widen(v_BD, x_BLD)[:, None] for v_BD in (shift_BD, scale_BD))
    return ((1 + scale) * layer_norm(widen(x_BLD, x_BLD), eps) + shift).to(x_BLD.dtype)


def _forward(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, ...]:
    inputs = [kernels.rows(t) for t in (x, shift, scale)]
    outputs = _empty(x, shift, scale, eps)
    kernels.run("modulate", "forward", *inputs, *outputs, eps)
    return outputs


def _empty(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, ...]:
    mean = x.new_empty(x.shape[:2], dtype=torch.float32)
    return x.new_empty(x.shape), mean, torch.empty_like(mean)


def _backward(
    grad_out: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, ...]:
    inputs = [kernels.rows(t) for t in (grad_out, x, scale)]
    outputs = _empty_grads(grad_out, x, scale, mean, rstd)
    kernels.run("modulate", "backward", *inputs, mean, rstd, *outputs)
    return outputs


def _empty_grads(
    grad_out: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, ...]:
    grad_shift = x.new_empty(scale.shape, dtype=torch.float32)
    return x.new_empty(x.shape), grad_shift, torch.empty_like(grad_shift)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, shift, scale, _ = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, scale, mean, rstd)
    ctx.shift_dtype = shift.dtype


def _gradient(ctx: Any, grad_out: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, scale, mean, rstd = ctx.saved_tensors
    grad_x, grad_shift, grad_scale = torch.ops.vidgen.modulate_backward(
        grad_out, x, scale, mean, rstd
    )
    return grad_x, grad_shift.to(ctx.shift_dtype), grad_scale.to(scale.dtype), None


define(
    "modulate(Tensor x, Tensor shift, Tensor scale, float eps)"
    " -> (Tensor out, Tensor mean, Tensor rstd)",
    _forward,
    _empty,
    _gradient,
    _setup_context,
)
define(
    "modulate_backward(Tensor grad_out, Tensor x, Tensor scale, Tensor mean, Tensor rstd)"
    " -> (Tensor grad_x, Tensor grad_shift, Tensor grad_scale)",
    _backward,
    _empty_grads,
)
