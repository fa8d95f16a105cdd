"""The activation of the blocks' MLPs; its backward pass saves only the input."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidgen.runtime.ops import dispatch, kernels
from vidgen.runtime.ops.reference import widen
from vidgen.runtime.ops.registry import define


def gelu_tanh(x: Tensor, out: Tensor | None = None) -> Tensor:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), in the type of x, any shape.

    With `out`, of x's shape and dtype, the result is written there, for example into part of a
    wider buffer; such a call has no gradient, as in torch.
    """
    if out is not None:
        return _into(x, out)
    if dispatch.choose("gelu_tanh", x) == "reference":
        return reference(x)
    result: Tensor = torch.ops.vidgen.gelu_tanh(x)
    return result


def _into(x: Tensor, out: Tensor) -> Tensor:
    if out.shape != x.shape or out.dtype != x.dtype:
        raise ValueError(
            f"gelu_tanh: out is {out.dtype} {tuple(out.shape)}, expected {x.dtype} {tuple(x.shape)}"
        )
    if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
        raise RuntimeError("gelu_tanh: a call with `out` has no gradient; omit `out`")
    if dispatch.choose("gelu_tanh", x) == "reference":
        return out.copy_(reference(x))
    torch.ops.vidgen.gelu_tanh_out(x, out)
    return out


def reference(x: Tensor) -> Tensor:
    return F.gelu(widen(x, x), approximate="tanh").to(x.dtype)


def _tokens(x: Tensor) -> Tensor:
    """The tensor as (B, L, D), without a copy if its strides allow."""
    if x.dim() == 3:
        return kernels.rows(x)
    if x.dim() < 3:
        return kernels.rows(x.reshape(1, -1, x.shape[-1] if x.dim() else 1))
    return kernels.rows(x.reshape(x.shape[0], -1, x.shape[-1]))


def _forward(x: Tensor) -> Tensor:
    out = _empty(x)
    if x.numel():
        kernels.run("gelu_tanh", "forward", _tokens(x), _tokens(out))
    return out


def _empty(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _forward_out(x: Tensor, out: Tensor) -> None:
    if not x.numel():
        return
    target = _tokens(out)
    kernels.run("gelu_tanh", "forward", _tokens(x), target)
    if target.data_ptr() != out.data_ptr():  # its strides do not allow a view as rows
        out.copy_(target.view(out.shape))


def _no_result(x: Tensor, out: Tensor) -> None:
    pass


def _backward(grad_out: Tensor, x: Tensor) -> Tensor:
    grad_x = _empty_grad(grad_out, x)
    if x.numel():
        kernels.run("gelu_tanh", "backward", _tokens(grad_out), _tokens(x), _tokens(grad_x))
    return grad_x


def _empty_grad(grad_out: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grad_out: Tensor) -> Tensor:
    grad_x: Tensor = torch.ops.vidgen.gelu_tanh_backward(grad_out, *ctx.saved_tensors)
    return grad_x


define("gelu_tanh(Tensor x) -> Tensor", _forward, _empty, _gradient, _setup_context)
define("gelu_tanh_backward(Tensor grad_out, Tensor x) -> Tensor", _backward, _empty_grad)
define("gelu_tanh_out(Tensor x, Tensor(a!) out) -> ()", _forward_out, _no_result)
