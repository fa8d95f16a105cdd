"""gelu_tanh in Triton: one program per token and block of features."""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl
from torch import Tensor

from vidgen.runtime.ops.triton.rows import strides

_BLOCK = 1024


@triton.jit
def _logistic_of_2u(x):
    """(1 + tanh(u)) / 2 and that times its complement, from e^(-2|u|), which cannot overflow."""
    u = 0.7978845608 * (x + 0.044715 * x * x * x)
    t = tl.exp(-2.0 * tl.abs(u))
    inverse = 1.0 / (1.0 + t)
    return tl.where(u < 0, t * inverse, inverse), t * inverse * inverse


@triton.jit
def _forward(x, x_b, x_l, out, out_b, out_l, length, width, BLOCK: tl.constexpr) -> None:
    token = tl.program_id(0).to(tl.int64)
    b = token // length
    t = token % length
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < width
    value = tl.load(x + b * x_b + t * x_l + i, mask=inside).to(tl.float32)
    share, _ = _logistic_of_2u(value)
    at = out + b * out_b + t * out_l + i
    tl.store(at, (value * share).to(out.dtype.element_ty), mask=inside)


def forward(x: Tensor, out: Tensor) -> None:
    samples, length, width = x.shape
    grid = (samples * length, triton.cdiv(width, _BLOCK))
    _forward[grid](x, *strides(x), out, *strides(out), length, width, BLOCK=_BLOCK)


@triton.jit
def _backward(
    grad_out, grad_out_b, grad_out_l, x, x_b, x_l, grad_x, grad_x_b, grad_x_l,
    length, width, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    b = token // length
    t = token % length
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < width
    value = tl.load(x + b * x_b + t * x_l + i, mask=inside).to(tl.float32)
    grad = tl.load(grad_out + b * grad_out_b + t * grad_out_l + i, mask=inside).to(tl.float32)
    share, times_complement = _logistic_of_2u(value)
    twice_du = 1.5957691216 * (1.0 + 0.134145 * value * value)
    result = grad * (share + value * times_complement * twice_du)
    at = grad_x + b * grad_x_b + t * grad_x_l + i
    tl.store(at, result.to(grad_x.dtype.element_ty), mask=inside)


def backward(grad_out: Tensor, x: Tensor, grad_x: Tensor) -> None:
    samples, length, width = x.shape
    grid = (samples * length, triton.cdiv(width, _BLOCK))
    _backward[grid](
        grad_out, *strides(grad_out), x, *strides(x), grad_x, *strides(grad_x),
        length, width, BLOCK=_BLOCK,
    )  # fmt: skip
