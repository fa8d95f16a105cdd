"""modulate in Triton: one program per token forward, per chunk of tokens backward."""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl
from torch import Tensor

from vidgen.runtime.ops.triton.rows import add_chunks, chunks, partials, row_options, strides


@triton.jit
def _forward(
    x, x_b, x_l, shift, shift_b, scale, scale_b, out, out_b, out_l, mean, rstd,
    length, width, eps, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    b = token // length
    t = token % length
    i = tl.arange(0, BLOCK)
    inside = i < width
    row = tl.load(x + b * x_b + t * x_l + i, mask=inside, other=0.0).to(tl.float32)
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
    x: Tensor, shift: Tensor, scale: Tensor, out: Tensor, mean: Tensor, rstd: Tensor, eps: float
) -> None:
    samples, length, width = x.shape
    if samples * length:
        _forward[(samples * length,)](
            x, *strides(x), shift, *strides(shift), scale, *strides(scale), out, *strides(out),
            mean, rstd, length, width, eps, **row_options(width),
        )  # fmt: skip


@triton.jit
def _backward(
    grad_out, grad_out_b, grad_out_l, x, x_b, x_l, scale, scale_b, mean, rstd,
    grad_x, grad_x_b, grad_x_l, shift_sums, scale_sums,
    length, width, chunk_length, chunk_count, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    b = chunk // chunk_count
    first = (chunk % chunk_count) * chunk_length
    i = tl.arange(0, BLOCK)
    inside = i < width
    factor = 1.0 + tl.load(scale + b * scale_b + i, mask=inside, other=0.0).to(tl.float32)
    shift_sum = tl.zeros((BLOCK,), tl.float32)
    scale_sum = tl.zeros((BLOCK,), tl.float32)
    for t in range(first, tl.minimum(first + chunk_length, length)):
        at = grad_out + b * grad_out_b + t * grad_out_l + i
        grad = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        row = tl.load(x + b * x_b + t * x_l + i, mask=inside, other=0.0).to(tl.float32)
        row_rstd = tl.load(rstd + b * length + t)
        normal = tl.where(inside, (row - tl.load(mean + b * length + t)) * row_rstd, 0.0)
        shift_sum += grad
        scale_sum += grad * normal
        w = grad * factor
        result = (w - tl.sum(w, 0) / width - normal * (tl.sum(w * normal, 0) / width)) * row_rstd
        at = grad_x + b * grad_x_b + t * grad_x_l + i
        tl.store(at, result.to(grad_x.dtype.element_ty), mask=inside)
    tl.store(shift_sums + chunk * width + i, shift_sum, mask=inside)
    tl.store(scale_sums + chunk * width + i, scale_sum, mask=inside)


def backward(
    grad_out: Tensor,
    x: Tensor,
    scale: Tensor,
    mean: Tensor,
    rstd: Tensor,
    grad_x: Tensor,
    grad_shift: Tensor,
    grad_scale: Tensor,
) -> None:
    samples, length, width = x.shape
    chunk_length, chunk_count = chunks(samples, length)
    sums = [partials(x, samples, chunk_count, width) for _ in range(2)]
    if samples * chunk_count:
        _backward[(samples * chunk_count,)](
            grad_out, *strides(grad_out), x, *strides(x), scale, *strides(scale), mean, rstd,
            grad_x, *strides(grad_x), *sums,
            length, width, chunk_length, chunk_count, **row_options(width),
        )  # fmt: skip
    for partial, result in zip(sums, (grad_shift, grad_scale), strict=True):
        add_chunks(partial, result)
