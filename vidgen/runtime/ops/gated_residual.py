"""A residual connection with a gate per sample."""

from typing import Any

import torch
from torch import Tensor

from vidgen.runtime.ops import dispatch, kernels
from vidgen.runtime.ops.reference import widen
from vidgen.runtime.ops.registry import define


def gated_residual(x_BLD: Tensor, y_BLD: Tensor, gate_BD: Tensor) -> Tensor:
    """x + gate * y, in the type of x, computed in float32."""
    y_BLD = y_BLD.to(x_BLD.dtype)
    if dispatch.choose("gated_residual", x_BLD) == "reference":
        return reference(x_BLD, y_BLD, gate_BD)
    out_BLD: Tensor = torch.ops.vidgen.gated_residual(x_BLD, y_BLD, gate_BD)
    return out_BLD


def reference(x_BLD: Tensor, y_BLD: Tensor, gate_BD: Tensor) -> Tensor:
    x, y, gate = (widen(t, x_BLD) for t in (x_BLD, y_BLD, gate_BD))
    return (x + gate[:, None] * y).to(x_BLD.dtype)


def _forward(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    inputs = [kernels.rows(t) for t in (x, y, gate)]
    out = _empty(x, y, gate)
    kernels.run("gated_residual", "forward", *inputs, out)
    return out


def _empty(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _backward(grad_out: Tensor, y: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
    inputs = [kernels.rows(t) for t in (grad_out, y, gate)]
    outputs = _empty_grads(grad_out, y, gate)
    kernels.run("gated_residual", "backward", *inputs, *outputs)
    return outputs


def _empty_grads(grad_out: Tensor, y: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
    return y.new_empty(y.shape), y.new_empty(gate.shape, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, y, gate = inputs
    ctx.save_for_backward(y, gate)


def _gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    y, gate = ctx.saved_tensors
    grad_y, grad_gate = torch.ops.vidgen.gated_residual_backward(grad_out, y, gate)
    return grad_out, grad_y, grad_gate.to(gate.dtype)


define(
    "gated_residual(Tensor x, Tensor y, Tensor gate) -> Tensor",
    _forward,
    _empty,
    _gradient,
    _setup_context,
)
define(
    "gated_residual_backward(Tensor grad_out, Tensor y, Tensor gate)"
    " -> (Tensor grad_y, Tensor grad_gate)",
    _backward,
    _empty_grads,
)
