"""merge in Triton: one program per block of rows, each row one token and head."""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl
from torch import Tensor

from vidgen.runtime.ops.triton.rows import strides

_ROWS = 8  # rows per program


@triton.jit
def _weigh(lse_a, lse_b):
    """The weight of each side, and the merged LSE; both weights are zero if both are empty."""
    nothing = (lse_a == -float("inf")) & (lse_b == -float("inf"))
    # Propagate NaN from either side.
    b_leads = lse_b > lse_a
    most = tl.where(b_leads, lse_b, lse_a)
    least = tl.where(b_leads, lse_a, lse_b)
    ratio = tl.exp(tl.where(nothing, 0.0, least - most))
    lead = 1.0 / (1.0 + ratio)
    weight_a = tl.where(nothing, 0.0, tl.where(b_leads, ratio * lead, lead))
    weight_b = tl.where(nothing, 0.0, tl.where(b_leads, lead, ratio * lead))
    lse = tl.where(nothing, -float("inf"), most + tl.log(1.0 + ratio))
    return weight_a, weight_b, lse


@triton.jit
def _offsets(n, b_stride, l_stride, h_stride, length, heads, i):
    """Offsets of row n of (B, H, L) in a (B, L, H, D) tensor."""
    row = (n // (heads * length)) * b_stride + (n % length) * l_stride
    return (row + (n // length % heads) * h_stride)[:, None] + i[None, :]


@triton.jit
def _forward(
    a, a_b, a_l, a_h, lse_a, b, b_b, b_l, b_h, lse_b, out, out_b, out_l, out_h, lse,
    count, length, heads, width, ROWS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, BLOCK)
    there = n < count
    inside = there[:, None] & (i < width)[None, :]
    weight_a, weight_b, joint = _weigh(
        tl.load(lse_a + n, mask=there, other=0.0), tl.load(lse_b + n, mask=there, other=0.0)
    )
    x = tl.load(a + _offsets(n, a_b, a_l, a_h, length, heads, i), mask=inside)
    y = tl.load(b + _offsets(n, b_b, b_l, b_h, length, heads, i), mask=inside).to(tl.float32)
    result = weight_a[:, None] * x + weight_b[:, None] * y
    tl.store(out + _offsets(n, out_b, out_l, out_h, length, heads, i), result, mask=inside)
    tl.store(lse + n, joint, mask=there)


def forward(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, out: Tensor, lse: Tensor
) -> None:
    _, length, heads, width = out_a.shape
    if out_a.numel():
        _forward[(triton.cdiv(lse.numel(), _ROWS),)](
            out_a, *strides(out_a), lse_a, out_b, *strides(out_b), lse_b, out, *strides(out), lse,
            lse.numel(), length, heads, width,
            ROWS=_ROWS, BLOCK=triton.next_power_of_2(width),
        )  # fmt: skip


@triton.jit
def _backward(
    grad, grad_b, grad_l, grad_h, grad_lse, a, a_b, a_l, a_h, lse_a, b, b_b, b_l, b_h, lse_b,
    da, da_b, da_l, da_h, dlse_a, db, db_b, db_l, db_h, dlse_b,
    count, length, heads, width, ROWS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, BLOCK)
    there = n < count
    inside = there[:, None] & (i < width)[None, :]
    weight_a, weight_b, _ = _weigh(
        tl.load(lse_a + n, mask=there, other=0.0), tl.load(lse_b + n, mask=there, other=0.0)
    )
    g_at = _offsets(n, grad_b, grad_l, grad_h, length, heads, i)
    g = tl.load(grad + g_at, mask=inside, other=0.0)
    x = tl.load(a + _offsets(n, a_b, a_l, a_h, length, heads, i), mask=inside, other=0.0)
    y_at = _offsets(n, b_b, b_l, b_h, length, heads, i)
    y = tl.load(b + y_at, mask=inside, other=0.0).to(tl.float32)
    db_at = _offsets(n, db_b, db_l, db_h, length, heads, i)
    da_at = _offsets(n, da_b, da_l, da_h, length, heads, i)
    tl.store(da + da_at, g * weight_a[:, None], mask=inside)
    tl.store(db + db_at, (g * weight_b[:, None]).to(db.dtype.element_ty), mask=inside)
    shift = weight_a * weight_b * tl.sum(g * (y - x), axis=1)
    joint = tl.load(grad_lse + n, mask=there, other=0.0)
    tl.store(dlse_a + n, weight_a * joint - shift, mask=there)
    tl.store(dlse_b + n, weight_b * joint + shift, mask=there)


def backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    out_a: Tensor,
    lse_a: Tensor,
    out_b: Tensor,
    lse_b: Tensor,
    grad_out_a: Tensor,
    grad_lse_a: Tensor,
    grad_out_b: Tensor,
    grad_lse_b: Tensor,
) -> None:
    _, length, heads, width = out_a.shape
    if out_a.numel():
        _backward[(triton.cdiv(lse_a.numel(), _ROWS),)](
            grad_out, *strides(grad_out), grad_lse, out_a, *strides(out_a), lse_a,
            out_b, *strides(out_b), lse_b, grad_out_a, *strides(grad_out_a), grad_lse_a,
            grad_out_b, *strides(grad_out_b), grad_lse_b,
            lse_a.numel(), length, heads, width,
            ROWS=_ROWS, BLOCK=triton.next_power_of_2(width),
        )  # fmt: skip
