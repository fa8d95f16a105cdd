"""gated_residual in Triton: one program per token forward, per chunk of tokens backward."""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl
from torch import Tensor

from vidgen.runtime.ops.triton.rows import add_chunks, chunks, partials, row_options, strides


@triton.jit
def _forward(
    x, x_b, x_l, y, y_b, y_l, gate, gate_b, out, out_b, out_l, length, width, BLOCK: tl.constexpr
) -> None:
    token = tl.program_id(0).to(tl.int64)
    b = token // length
    t = token % length
    i = tl.arange(0, BLOCK)
    inside = i < width
    row = tl.load(x + b * x_b + t * x_l + i, mask=inside).to(tl.float32)
    branch = tl.load(y + b * y_b + t * y_l + i, mask=inside).to(tl.float32)
    result = row + tl.load(gate + b * gate_b + i, mask=inside).to(tl.float32) * branch
    tl.store(out + b * out_b + t * out_l + i, result.to(out.dtype.element_ty), mask=inside)


def forward(x: Tensor, y: Tensor, gate: Tensor, out: Tensor) -> None:
    samples, length, width = x.shape
    if samples * length:
        _forward[(samples * length,)](
            x, *strides(x), y, *strides(y), gate, *strides(gate), out, *strides(out),
            length, width, **row_options(width),
        )  # fmt: skip


@triton.jit
def _backward(
    grad_out, grad_out_b, grad_out_l, y, y_b, y_l, gate, gate_b, grad_y, grad_y_b, grad_y_l,
    gate_sums, length, width, chunk_length, chunk_count, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    b = chunk // chunk_count
    first = (chunk % chunk_count) * chunk_length
    i = tl.arange(0, BLOCK)
    inside = i < width
    factor = tl.load(gate + b * gate_b + i, mask=inside).to(tl.float32)
    gate_sum = tl.zeros((BLOCK,), tl.float32)
    for t in range(first, tl.minimum(first + chunk_length, length)):
        grad = tl.load(grad_out + b * grad_out_b + t * grad_out_l + i, mask=inside).to(tl.float32)
        gate_sum += grad * tl.load(y + b * y_b + t * y_l + i, mask=inside).to(tl.float32)
        at = grad_y + b * grad_y_b + t * grad_y_l + i
        tl.store(at, (grad * factor).to(grad_y.dtype.element_ty), mask=inside)
    tl.store(gate_sums + chunk * width + i, gate_sum, mask=inside)


def backward(grad_out: Tensor, y: Tensor, gate: Tensor, grad_y: Tensor, grad_gate: Tensor) -> None:
    samples, length, width = y.shape
    chunk_length, chunk_count = chunks(samples, length)
    sums = partials(y, samples, chunk_count, width)
    if samples * chunk_count:
        _backward[(samples * chunk_count,)](
            grad_out, *strides(grad_out), y, *strides(y), gate, *strides(gate),
            grad_y, *strides(grad_y), sums,
            length, width, chunk_length, chunk_count, **row_options(width),
        )  # fmt: skip
    add_chunks(sums, grad_gate)
