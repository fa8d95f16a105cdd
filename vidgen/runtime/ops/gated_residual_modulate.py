"""A gated residual connection and the modulated norm that follows it, in one pass."""

from typing import Any

import torch
from torch import Tensor

from vidgen.runtime.ops import dispatch, kernels
from vidgen.runtime.ops.gated_residual import reference as gated_residual
from vidgen.runtime.ops.modulate import reference as modulate
from vidgen.runtime.ops.registry import define


def gated_residual_modulate(
    x_BLD: Tensor,
    y_BLD: Tensor,
    gate_BD: Tensor,
    shift_BD: Tensor,
    scale_BD: Tensor,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """residual = x + gate * y and (1 + scale) * layer_norm(residual) + shift, in the type of x."""
    y_BLD = y_BLD.to(x_BLD.dtype)
    if dispatch.choose("gated_residual_modulate", x_BLD) == "reference":
        return reference(x_BLD, y_BLD, gate_BD, shift_BD, scale_BD, eps)
    residual_BLD, out_BLD, _, _ = torch.ops.vidgen.gated_residual_modulate(
        x_BLD, y_BLD, gate_BD, shift_BD, scale_BD, eps
    )
    return residual_BLD, out_BLD


def reference(
    x_BLD: Tensor, y_BLD: Tensor, gate_BD: Tensor, shift_BD: Tensor, scale_BD: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    residual_BLD = gated_residual(x_BLD, y_BLD, gate_BD)
    return residual_BLD, modulate(residual_BLD, shift_BD, scale_BD, eps)


def _forward(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, ...]:
    inputs = [kernels.rows(t) for t in (x, y, gate, shift, scale)]
    outputs = _empty(x, y, gate, shift, scale, eps)
    kernels.run("gated_residual_modulate", "forward", *inputs, *outputs, eps)
    return outputs


def _empty(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, ...]:
    mean = x.new_empty(x.shape[:2], dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape), mean, torch.empty_like(mean)


def _backward(
    grad_residual: Tensor,
    grad_out: Tensor,
    residual: Tensor,
    y: Tensor,
    gate: Tensor,
    scale: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, ...]:
    inputs = [kernels.rows(t) for t in (grad_residual, grad_out, residual, y, gate, scale)]
    outputs = _empty_grads(grad_residual, grad_out, residual, y, gate, scale, mean, rstd)
    kernels.run("gated_residual_modulate", "backward", *inputs, mean, rstd, *outputs)
    return outputs


def _empty_grads(
    grad_residual: Tensor,
    grad_out: Tensor,
    residual: Tensor,
    y: Tensor,
    gate: Tensor,
    scale: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, ...]:
    grad_gate = y.new_empty(gate.shape, dtype=torch.float32)
    vectors = grad_gate, torch.empty_like(grad_gate), torch.empty_like(grad_gate)
    return y.new_empty(y.shape), y.new_empty(y.shape), *vectors


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, y, gate, shift, scale, _ = inputs
    residual, _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(residual, y, gate, scale, mean, rstd)
    ctx.shift_dtype = shift.dtype


def _gradient(
    ctx: Any, grad_residual: Tensor, grad_out: Tensor, *_: Any
) -> tuple[Tensor | None, ...]:
    residual, y, gate, scale, mean, rstd = ctx.saved_tensors
    grad_x, grad_y, grad_gate, grad_shift, grad_scale = (
        torch.ops.vidgen.gated_residual_modulate_backward(
            grad_residual, grad_out, residual, y, gate, scale, mean, rstd
        )
    )
    vectors = grad_gate.to(gate.dtype), grad_shift.to(ctx.shift_dtype), grad_scale.to(scale.dtype)
    return grad_x, grad_y, *vectors, None


define(
    "gated_residual_modulate(Tensor x, Tensor y, Tensor gate, Tensor shift, Tensor scale,"
    " float eps) -> (Tensor residual, Tensor out, Tensor mean, Tensor rstd)",
    _forward,
    _empty,
    _gradient,
    _setup_context,
)
define(
    "gated_residual_modulate_backward(Tensor grad_residual, Tensor grad_out, Tensor residual,"
    " Tensor y, Tensor gate, Tensor scale, Tensor mean, Tensor rstd)"
    " -> (Tensor grad_x, Tensor grad_y, Tensor grad_gate, Tensor grad_shift, Tensor grad_scale)",
    _backward,
    _empty_grads,
)
