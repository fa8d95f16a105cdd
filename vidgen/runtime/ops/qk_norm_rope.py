"""RMS norm of every query and key head, then rotary position embedding."""

from typing import Any

import torch
from torch import Tensor

from vidgen.runtime.ops import dispatch, kernels
from vidgen.runtime.ops.reference import widen
from vidgen.runtime.ops.registry import define


def qk_norm_rope(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    q_scale_D: Tensor,
    k_scale_D: Tensor,
    cos_LP: Tensor,
    sin_LP: Tensor,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """q and k with each head divided by its root mean square, scaled and rotated, in their dtype.

    Features j and j + D / 2 of a head are rotated by the angle of `rope_tables` for pair j.
    q and k may be views of a packed projection: only their last dimension must be contiguous.
    """
    if dispatch.choose("qk_norm_rope", q_BLHD) == "reference":
        return (
            reference(q_BLHD, q_scale_D, cos_LP, sin_LP, eps),
            reference(k_BLHD, k_scale_D, cos_LP, sin_LP, eps),
        )
    q_out_BLHD, k_out_BLHD = torch.ops.vidgen.qk_norm_rope(
        q_BLHD, k_BLHD, q_scale_D, k_scale_D, cos_LP, sin_LP, eps
    )
    return q_out_BLHD, k_out_BLHD


def reference(
    x_BLHD: Tensor, scale_D: Tensor, cos_LP: Tensor, sin_LP: Tensor, eps: float
) -> Tensor:
    x = widen(x_BLHD, x_BLHD)
    normal = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * widen(scale_D, x_BLHD)
    first, second = normal.chunk(2, dim=-1)
    cos, sin = widen(cos_LP, x_BLHD)[:, None], widen(sin_LP, x_BLHD)[:, None]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x_BLHD.dtype)


def _forward(
    q: Tensor, k: Tensor, q_scale: Tensor, k_scale: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, ...]:
    inputs = [kernels.rows(t) for t in (q, k, q_scale, k_scale)]
    outputs = _empty(q, k, q_scale, k_scale, cos, sin, eps)
    tables = cos.contiguous(), sin.contiguous()
    kernels.run("qk_norm_rope", "forward", *inputs, *tables, *outputs, eps)
    return outputs


def _empty(
    q: Tensor, k: Tensor, q_scale: Tensor, k_scale: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, ...]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _backward(
    grad_q_out: Tensor,
    grad_k_out: Tensor,
    q: Tensor,
    k: Tensor,
    q_scale: Tensor,
    k_scale: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> tuple[Tensor, ...]:
    inputs = [kernels.rows(t) for t in (grad_q_out, grad_k_out, q, k, q_scale, k_scale)]
    outputs = _empty_grads(grad_q_out, grad_k_out, q, k, q_scale, k_scale, cos, sin, eps)
    tables = cos.contiguous(), sin.contiguous()
    kernels.run("qk_norm_rope", "backward", *inputs, *tables, *outputs, eps)
    return outputs


def _empty_grads(
    grad_q_out: Tensor,
    grad_k_out: Tensor,
    q: Tensor,
    k: Tensor,
    q_scale: Tensor,
    k_scale: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> tuple[Tensor, ...]:
    grad_q_scale = q.new_empty(q_scale.shape, dtype=torch.float32)
    return q.new_empty(q.shape), k.new_empty(k.shape), grad_q_scale, torch.empty_like(grad_q_scale)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, grad_q_out: Tensor, grad_k_out: Tensor) -> tuple[Tensor | None, ...]:
    q, k, q_scale, k_scale, cos, sin = ctx.saved_tensors
    grad_q, grad_k, grad_q_scale, grad_k_scale = torch.ops.vidgen.qk_norm_rope_backward(
        grad_q_out, grad_k_out, q, k, q_scale, k_scale, cos, sin, ctx.eps
    )
    scales = grad_q_scale.to(q_scale.dtype), grad_k_scale.to(k_scale.dtype)
    return grad_q, grad_k, *scales, None, None, None


define(
    "qk_norm_rope(Tensor q, Tensor k, Tensor q_scale, Tensor k_scale, Tensor cos, Tensor sin,"
    " float eps) -> (Tensor q_out, Tensor k_out)",
    _forward,
    _empty,
    _gradient,
    _setup_context,
)
define(
    "qk_norm_rope_backward(Tensor grad_q_out, Tensor grad_k_out, Tensor q, Tensor k,"
    " Tensor q_scale, Tensor k_scale, Tensor cos, Tensor sin, float eps)"
    " -> (Tensor grad_q, Tensor grad_k, Tensor grad_q_scale, Tensor grad_k_scale)",
    _backward,
    _empty_grads,
)
