"""adamw in Triton: one program a block of columns of a row."""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _random_bits(element, key0, key1):
    x = element ^ key0
    x ^= x >> 16
    x *= 0x7FEB352D
    x += key1
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _stored(value, random, BF16: tl.constexpr):
    if BF16:
        words = value.to(tl.uint32, bitcast=True)
        rounded = ((words + random) & 0xFFFF0000).to(tl.float32, bitcast=True)
        value = tl.where(value == value, rounded, value).to(tl.bfloat16)
    return value


# What differs from tensor to tensor and step to step is not compiled in.
@triton.jit(do_not_specialize=["key0", "key1", "first", "row"])
def _step(
    param, param_l, grad, grad_l, exp_avg, exp_avg_l, exp_avg_sq, exp_avg_sq_l, average, average_l,
    keep, rate1, beta2, rate2, eps, step_size, root, follow, key0, key1, first, row, width,
    AVERAGED: tl.constexpr, BF16: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    l = tl.program_id(0).to(tl.int64)  # noqa: E741
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < width
    g = tl.load(grad + l * grad_l + i, mask=inside)
    m = tl.load(exp_avg + l * exp_avg_l + i, mask=inside).to(tl.float32)
    v = tl.load(exp_avg_sq + l * exp_avg_sq_l + i, mask=inside).to(tl.float32)
    m = m + rate1 * (g - m)
    v = beta2 * v + rate2 * (g * g)
    p = keep * tl.load(param + l * param_l + i, mask=inside)
    p -= step_size * m / (tl.sqrt(v) * root + eps)
    tl.store(param + l * param_l + i, p, mask=inside)
    number = (first + l * row).to(tl.uint32) + i.to(tl.uint32)
    random = _random_bits(number, key0.to(tl.uint32), key1.to(tl.uint32))
    tl.store(exp_avg + l * exp_avg_l + i, _stored(m, random & 0xFFFF, BF16), mask=inside)
    tl.store(exp_avg_sq + l * exp_avg_sq_l + i, _stored(v, random >> 16, BF16), mask=inside)
    if AVERAGED:
        at = average + l * average_l + i
        old = tl.load(at, mask=inside)
        tl.store(at, old + follow * (p - old), mask=inside)


def forward(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    average: Tensor | None,
    settings: Tensor,
    place: Tensor,
) -> None:
    _, length, width = param.shape
    follower = param if average is None else average
    pointers = [
        argument
        for tensor in (param, grad, exp_avg, exp_avg_sq, follower)
        for argument in (tensor, tensor.stride(1))
    ]
    _step[(length, triton.cdiv(width, _BLOCK))](
        *pointers, *settings.tolist(), *place.tolist(), width,
        AVERAGED=average is not None, BF16=exp_avg.element_size() == 2, BLOCK=_BLOCK,
    )  # fmt: skip
