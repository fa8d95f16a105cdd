"""gated_residual_modulate in Triton: one program per token forward, per chunk backward."""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl
from torch import Tensor

from vidgen.runtime.ops.triton.rows import add_chunks, chunks, partials, row_options, strides


@triton.jit
def _forward(
    x, x_b, x_l, y, y_b, y_l, gate, gate_b, shift, shift_b, scale, scale_b,
    residual, residual_b, residual_l, out, out_b, out_l, mean, rstd,
    length, width, eps, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    b = token // length
    t = token % length
    i = tl.arange(0, BLOCK)
    inside = i < width
    row = tl.load(x + b * x_b + t * x_l + i, mask=inside, other=0.0).to(tl.float32)
    branch = tl.load(y + b * y_b + t * y_l + i, mask=inside, other=0.0).to(tl.float32)
    row += tl.load(gate + b * gate_b + i, mask=inside, other=0.0).to(tl.float32) * branch
    stored = row.to(residual.dtype.element_ty)
    tl.store(residual + b * residual_b + t * residual_l + i, stored, mask=inside)
    # Normalise the residual as stored (rounded), which the backward pass reads.
    row = stored.to(tl.float32)
    row_mean = tl.sum(row, 0) / width
    centred = tl.where(inside, row - row_mean, 0.0)
    row_rstd = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, 0) / width + eps)
    tl.store(mean + token, row_mean)
    tl.store(rstd + token, row_rstd)
    factor = 1.0 + tl.load(scale + b * scale_b + i, mask=inside, other=0.0).to(tl.float32)
    addend = tl.load(shift + b * shift_b + i, mask=inside, other=0.0).to(tl.float32)
    result = centred * row_rstd * factor + addend
    tl.store(out + b * out_b + t * out_l + i, result.to(out.dtype.element_ty), mask=inside)


def forward(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    residual: Tensor,
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
) -> None:
    samples, length, width = x.shape
    if samples * length:
        _forward[(samples * length,)](
            x, *strides(x), y, *strides(y), gate, *strides(gate), shift, *strides(shift),
            scale, *strides(scale), residual, *strides(residual), out, *strides(out), mean, rstd,
            length, width, eps, **row_options(width),
        )  # fmt: skip


@triton.jit
def _backward(
    grad_residual, grad_residual_b, grad_residual_l, grad_out, grad_out_b, grad_out_l,
    residual, residual_b, residual_l, y, y_b, y_l, gate, gate_b, scale, scale_b, mean, rstd,
    grad_x, grad_x_b, grad_x_l, grad_y, grad_y_b, grad_y_l, gate_sums, shift_sums, scale_sums,
    length, width, chunk_length, chunk_count, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    b = chunk // chunk_count
    first = (chunk % chunk_count) * chunk_length
    i = tl.arange(0, BLOCK)
    inside = i < width
    factor = 1.0 + tl.load(scale + b * scale_b + i, mask=inside, other=0.0).to(tl.float32)
    gate_factor = tl.load(gate + b * gate_b + i, mask=inside, other=0.0).to(tl.float32)
    gate_sum = tl.zeros((BLOCK,), tl.float32)
    shift_sum = tl.zeros((BLOCK,), tl.float32)
    scale_sum = tl.zeros((BLOCK,), tl.float32)
    for t in range(first, tl.minimum(first + chunk_length, length)):
        at = grad_out + b * grad_out_b + t * grad_out_l + i
        grad = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        at = residual + b * residual_b + t * residual_l + i
        row = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        row_rstd = tl.load(rstd + b * length + t)
        normal = tl.where(inside, (row - tl.load(mean + b * length + t)) * row_rstd, 0.0)
        w = grad * factor
        total = (w - tl.sum(w, 0) / width - normal * (tl.sum(w * normal, 0) / width)) * row_rstd
        at = grad_residual + b * grad_residual_b + t * grad_residual_l + i
        total += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        branch = tl.load(y + b * y_b + t * y_l + i, mask=inside, other=0.0).to(tl.float32)
        gate_sum += total * branch
        shift_sum += grad
        scale_sum += grad * normal
        at = grad_x + b * grad_x_b + t * grad_x_l + i
        tl.store(at, total.to(grad_x.dtype.element_ty), mask=inside)
        at = grad_y + b * grad_y_b + t * grad_y_l + i
        tl.store(at, (total * gate_factor).to(grad_y.dtype.element_ty), mask=inside)
    tl.store(gate_sums + chunk * width + i, gate_sum, mask=inside)
    tl.store(shift_sums + chunk * width + i, shift_sum, mask=inside)
    tl.store(scale_sums + chunk * width + i, scale_sum, mask=inside)


def backward(
    grad_residual: Tensor,
    grad_out: Tensor,
    residual: Tensor,
    y: Tensor,
    gate: Tensor,
    scale: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad_x: Tensor,
    grad_y: Tensor,
    grad_gate: Tensor,
    grad_shift: Tensor,
    grad_scale: Tensor,
) -> None:
    samples, length, width = residual.shape
    chunk_length, chunk_count = chunks(samples, length)
    sums = [partials(residual, samples, chunk_count, width) for _ in range(3)]
    if samples * chunk_count:
        _backward[(samples * chunk_count,)](
            grad_residual, *strides(grad_residual), grad_out, *strides(grad_out),
            residual, *strides(residual), y, *strides(y), gate, *strides(gate),
            scale, *strides(scale), mean, rstd, grad_x, *strides(grad_x), grad_y, *strides(grad_y),
            *sums, length, width, chunk_length, chunk_count, **row_options(width),
        )  # fmt: skip
    for partial, result in zip(sums, (grad_gate, grad_shift, grad_scale), strict=True):
        add_chunks(partial, result)
