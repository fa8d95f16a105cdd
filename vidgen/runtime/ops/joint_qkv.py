"""From packed projections to the q, k and v of the joint attention.

A projection's rows are q, k, v and, in a single-stream block, the perceptron's hidden features. One
op reads them all, so that the gradient of a projection is written once, in place, by its backward
pass: nothing is concatenated or stacked in either direction.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vidgen.runtime.ops import dispatch, kernels
from vidgen.runtime.ops.copy_rows import launch as copy_rows
from vidgen.runtime.ops.gelu_tanh import reference as gelu_tanh
from vidgen.runtime.ops.qk_norm_rope import reference as norm_rope
from vidgen.runtime.ops.registry import define


def joint_qkv(
    packed_BLP: Sequence[Tensor],
    q_scale_D: Sequence[Tensor],
    k_scale_D: Sequence[Tensor],
    cos_LP: Tensor,
    sin_LP: Tensor,
    heads: int,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v, each (B, L, H, D), of the streams one after another, text first.

    A stream's packed projection is (B, its tokens, 3 H D); q and k go through `qk_norm_rope` with
    the stream's own scales, v is taken as it is.
    """
    width = 3 * heads * q_scale_D[0].shape[0]
    if any(packed.shape[-1] != width for packed in packed_BLP):
        shapes = [tuple(packed.shape) for packed in packed_BLP]
        raise ValueError(f"joint_qkv: projections {shapes}: expected {width} features, 3 H D")
    q, k, v, _ = _split(packed_BLP, q_scale_D, k_scale_D, cos_LP, sin_LP, heads, eps)
    return q, k, v


def qkv_mlp(
    packed_BLP: Tensor,
    q_scale_D: Tensor,
    k_scale_D: Tensor,
    cos_LP: Tensor,
    sin_LP: Tensor,
    heads: int,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v of a projection to 3 H D + M features, and the promise of gelu_tanh of the last M.

    The promise holds no numbers: `attention_mlp` computes them where they are wanted. It is what
    their gradient comes back through.
    """
    return _split([packed_BLP], [q_scale_D], [k_scale_D], cos_LP, sin_LP, heads, eps)


def _split(
    packed: Sequence[Tensor],
    q_scale: Sequence[Tensor],
    k_scale: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if dispatch.choose("joint_qkv", packed[0]) == "reference":
        return reference(packed, q_scale, k_scale, cos, sin, heads, eps)
    q, k, v, mlp = torch.ops.vidgen.joint_qkv(
        list(packed), list(q_scale), list(k_scale), cos, sin, heads, eps
    )
    return q, k, v, mlp


def reference(
    packed: Sequence[Tensor],
    q_scale: Sequence[Tensor],
    k_scale: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    streams, begin = [], 0
    for x, of_q, of_k in zip(packed, q_scale, k_scale, strict=True):
        q, k, v = _heads(x, heads, of_q.shape[0])
        here = slice(begin, begin + x.shape[1])
        begin = here.stop
        q = norm_rope(q, of_q, cos[here], sin[here], eps)
        streams.append((q, norm_rope(k, of_k, cos[here], sin[here], eps), v))
    q, k, v = (torch.cat(parts, dim=1) for parts in zip(*streams, strict=True))
    hidden = [x[..., 3 * heads * q.shape[-1] :] for x in packed]
    return q, k, v, gelu_tanh(torch.cat(hidden, dim=1))


def _heads(packed: Tensor, heads: int, width: int) -> tuple[Tensor, ...]:
    """Views of q, k and v in a packed projection."""
    return torch.unflatten(packed[..., : 3 * heads * width], -1, (3, heads, width)).unbind(2)


def _forward(
    packed: list[Tensor],
    q_scale: list[Tensor],
    k_scale: list[Tensor],
    cos: Tensor,
    sin: Tensor,
    heads: int,
    eps: float,
) -> tuple[Tensor, ...]:
    outputs = _empty(packed, q_scale, k_scale, cos, sin, heads, eps)
    cos, sin = cos.contiguous(), sin.contiguous()
    begin = 0
    for x, of_q, of_k in zip(packed, q_scale, k_scale, strict=True):
        here = slice(begin, begin + x.shape[1])
        begin = here.stop
        q_out, k_out, v_out = (out[:, here] for out in outputs[:3])
        q, k, v = _heads(kernels.rows(x), heads, of_q.shape[0])
        scales = kernels.rows(of_q), kernels.rows(of_k)
        tables = cos[here], sin[here]
        kernels.run("qk_norm_rope", "forward", q, k, *scales, *tables, q_out, k_out, eps)
        copy_rows(v, v_out)
    return outputs


def _empty(
    packed: list[Tensor],
    q_scale: list[Tensor],
    k_scale: list[Tensor],
    cos: Tensor,
    sin: Tensor,
    heads: int,
    eps: float,
) -> tuple[Tensor, ...]:
    first, width = packed[0], q_scale[0].shape[0]
    length = sum(x.shape[1] for x in packed)
    q, k, v = (first.new_empty((first.shape[0], length, heads, width)) for _ in range(3))
    # Whoever reads the promise as numbers finds NaN.
    promise = first.new_full((1, 1, 1), float("nan"))
    return q, k, v, promise.expand(first.shape[0], length, first.shape[2] - 3 * heads * width)


def _backward(
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    grad_mlp: Tensor,
    packed: list[Tensor],
    q_scale: list[Tensor],
    k_scale: list[Tensor],
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> list[Tensor]:
    grads = _empty_grads(grad_q, grad_k, grad_v, grad_mlp, packed, q_scale, k_scale, cos, sin, eps)
    heads, width = grad_q.shape[2:]
    cos, sin = cos.contiguous(), sin.contiguous()
    begin = 0
    for i, (x, of_q, of_k) in enumerate(zip(packed, q_scale, k_scale, strict=True)):
        grad_x, *grad_scales = grads[i :: len(packed)]
        here = slice(begin, begin + x.shape[1])
        begin = here.stop
        of_out = [kernels.rows(grad)[:, here] for grad in (grad_q, grad_k)]
        x = kernels.rows(x)
        q, k, _ = _heads(x, heads, width)
        of_q_in, of_k_in, of_v_in = _heads(grad_x, heads, width)
        scales = kernels.rows(of_q), kernels.rows(of_k)
        tables = cos[here], sin[here]
        kernels.run(
            "qk_norm_rope", "backward",
            *of_out, q, k, *scales, *tables, of_q_in, of_k_in, *grad_scales, eps,
        )  # fmt: skip
        copy_rows(grad_v[:, here], of_v_in)
        if x.shape[-1] > 3 * heads * width and x.numel():
            hidden, of_hidden = (t[..., 3 * heads * width :] for t in (x, grad_x))
            of_mlp = kernels.rows(grad_mlp)[:, here]
            kernels.run("gelu_tanh", "backward", of_mlp, hidden, of_hidden)
    return grads


def _empty_grads(
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    grad_mlp: Tensor,
    packed: list[Tensor],
    q_scale: list[Tensor],
    k_scale: list[Tensor],
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> list[Tensor]:
    """Of every packed projection, then of every q scale, then of every k scale."""
    of_packed = [x.new_empty(x.shape) for x in packed]
    of_scales = [x.new_empty(x.shape, dtype=torch.float32) for x in (*q_scale, *k_scale)]
    return [*of_packed, *of_scales]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    packed, q_scale, k_scale, cos, sin, _, ctx.eps = inputs
    ctx.streams = len(packed)
    ctx.save_for_backward(*packed, *q_scale, *k_scale, cos, sin)


def _gradient(
    ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, grad_mlp: Tensor
) -> tuple[Any, ...]:
    *lists, cos, sin = ctx.saved_tensors
    n = ctx.streams
    packed, q_scale, k_scale = lists[:n], lists[n : 2 * n], lists[2 * n :]
    grads = torch.ops.vidgen.joint_qkv_backward(
        grad_q, grad_k, grad_v, grad_mlp, packed, q_scale, k_scale, cos, sin, ctx.eps
    )
    of_scales = [
        grad.to(scale.dtype) for grad, scale in zip(grads[n:], (*q_scale, *k_scale), strict=True)
    ]
    return grads[:n], of_scales[:n], of_scales[n:], None, None, None, None


define(
    "joint_qkv(Tensor[] packed, Tensor[] q_scale, Tensor[] k_scale, Tensor cos, Tensor sin,"
    " SymInt heads, float eps) -> (Tensor q, Tensor k, Tensor v, Tensor mlp)",
    _forward,
    _empty,
    _gradient,
    _setup_context,
)
define(
    "joint_qkv_backward(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_mlp,"
    " Tensor[] packed, Tensor[] q_scale, Tensor[] k_scale, Tensor cos, Tensor sin, float eps)"
    " -> Tensor[]",
    _backward,
    _empty_grads,
)
