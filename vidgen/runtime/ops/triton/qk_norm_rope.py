"""qk_norm_rope in Triton: one program per token forward, per chunk backward, with all heads."""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl
from torch import Tensor

from vidgen.runtime.ops.triton.rows import add_chunks, chunks, partials, strides


@triton.jit
def _forward(
    x, x_b, x_l, x_h, scale, cos, sin, out, out_b, out_l, out_h,
    length, heads, pairs, eps, HEADS: tl.constexpr, PAIRS: tl.constexpr,
) -> None:  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    b = token // length
    t = token % length
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    j = tl.arange(0, PAIRS)[None, :]
    turns = j < pairs
    inside = (h < heads) & turns
    at = x + b * x_b + t * x_l + h * x_h + j
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + pairs, mask=inside, other=0.0).to(tl.float32)
    squares = tl.sum(first * first + second * second, 1)[:, None]
    rstd = 1.0 / tl.sqrt_rn(squares / (2 * pairs) + eps)
    first *= rstd * tl.load(scale + j, mask=turns, other=0.0).to(tl.float32)
    second *= rstd * tl.load(scale + pairs + j, mask=turns, other=0.0).to(tl.float32)
    c = tl.load(cos + t * pairs + j, mask=turns, other=0.0)
    s = tl.load(sin + t * pairs + j, mask=turns, other=0.0)
    at = out + b * out_b + t * out_l + h * out_h + j
    tl.store(at, (first * c - second * s).to(out.dtype.element_ty), mask=inside)
    tl.store(at + pairs, (second * c + first * s).to(out.dtype.element_ty), mask=inside)


def forward(
    q: Tensor,
    k: Tensor,
    q_scale: Tensor,
    k_scale: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_out: Tensor,
    k_out: Tensor,
    eps: float,
) -> None:
    samples, length, heads, width = q.shape
    block = _blocks(heads, width)
    grid = (samples * length, triton.cdiv(heads, block["HEADS"]))
    if samples * length * heads:
        for x, scale, out in ((q, q_scale, q_out), (k, k_scale, k_out)):
            _forward[grid](
                x, *strides(x), scale, cos, sin, out, *strides(out),
                length, heads, width // 2, eps, **block,
            )  # fmt: skip


def _blocks(heads: int, width: int) -> dict[str, int]:
    """Heads and pairs per program, powers of two; at most 4096 elements of each half."""
    pairs = triton.next_power_of_2(width // 2)
    return {"HEADS": min(triton.next_power_of_2(heads), 4096 // pairs), "PAIRS": pairs}


@triton.jit
def _backward(
    grad_out, grad_out_b, grad_out_l, grad_out_h, x, x_b, x_l, x_h, scale, cos, sin,
    grad_x, grad_x_b, grad_x_l, grad_x_h, sums,
    tokens, length, heads, pairs, chunk_length, eps, HEADS: tl.constexpr, PAIRS: tl.constexpr,
) -> None:  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    first_token = chunk * chunk_length
    j = tl.arange(0, PAIRS)[None, :]
    turns = j < pairs
    scale1 = tl.load(scale + j, mask=turns, other=0.0).to(tl.float32)
    scale2 = tl.load(scale + pairs + j, mask=turns, other=0.0).to(tl.float32)
    sum1 = tl.zeros((PAIRS,), tl.float32)
    sum2 = tl.zeros((PAIRS,), tl.float32)
    for token in range(first_token, tl.minimum(first_token + chunk_length, tokens)):
        b = token // length
        t = token % length
        c = tl.load(cos + t * pairs + j, mask=turns, other=0.0)
        s = tl.load(sin + t * pairs + j, mask=turns, other=0.0)
        for first_head in range(0, heads, HEADS):
            h = first_head + tl.arange(0, HEADS)[:, None]
            inside = (h < heads) & turns
            at = x + b * x_b + t * x_l + h * x_h + j
            x1 = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            x2 = tl.load(at + pairs, mask=inside, other=0.0).to(tl.float32)
            at = grad_out + b * grad_out_b + t * grad_out_l + h * grad_out_h + j
            g1 = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            g2 = tl.load(at + pairs, mask=inside, other=0.0).to(tl.float32)
            squares = tl.sum(x1 * x1 + x2 * x2, 1)[:, None]
            rstd = 1.0 / tl.sqrt_rn(squares / (2 * pairs) + eps)
            before1 = g1 * c + g2 * s
            before2 = g2 * c - g1 * s
            normal1 = x1 * rstd
            normal2 = x2 * rstd
            sum1 += tl.sum(before1 * normal1, 0)
            sum2 += tl.sum(before2 * normal2, 0)
            w1 = before1 * scale1
            w2 = before2 * scale2
            mean = tl.sum(w1 * normal1 + w2 * normal2, 1)[:, None] / (2 * pairs)
            at = grad_x + b * grad_x_b + t * grad_x_l + h * grad_x_h + j
            result1 = ((w1 - normal1 * mean) * rstd).to(grad_x.dtype.element_ty)
            result2 = ((w2 - normal2 * mean) * rstd).to(grad_x.dtype.element_ty)
            tl.store(at, result1, mask=inside)
            tl.store(at + pairs, result2, mask=inside)
    i = tl.arange(0, PAIRS)
    at = sums + chunk * 2 * pairs + i
    tl.store(at, sum1, mask=i < pairs)
    tl.store(at + pairs, sum2, mask=i < pairs)


def backward(
    grad_q_out: Tensor,
    grad_k_out: Tensor,
    q: Tensor,
    k: Tensor,
    q_scale: Tensor,
    k_scale: Tensor,
    cos: Tensor,
    sin: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_q_scale: Tensor,
    grad_k_scale: Tensor,
    eps: float,
) -> None:
    samples, length, heads, width = q.shape
    tokens = samples * length
    chunk_length, chunk_count = chunks(1, tokens)
    sides = (
        (grad_q_out, q, q_scale, grad_q, grad_q_scale),
        (grad_k_out, k, k_scale, grad_k, grad_k_scale),
    )
    for grad_out, x, scale, grad_x, grad_scale in sides:
        sums = partials(x, 1, chunk_count, width)
        if chunk_count:
            _backward[(chunk_count,)](
                grad_out, *strides(grad_out), x, *strides(x), scale, cos, sin,
                grad_x, *strides(grad_x), sums,
                tokens, length, heads, width // 2, chunk_length, eps, **_blocks(heads, width),
            )  # fmt: skip
        add_chunks(sums, grad_scale.view(1, width))
