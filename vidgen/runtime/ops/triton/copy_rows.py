"""copy_rows in Triton: one program per token and block of heads."""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl
from torch import Tensor

from vidgen.runtime.ops.triton.rows import strides


@triton.jit
def _forward(
    x, x_b, x_l, x_h, out, out_b, out_l, out_h,
    length, heads, width, HEADS: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    b = token // length
    t = token % length
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    j = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)[None, :]
    inside = (h < heads) & (j < width)
    value = tl.load(x + b * x_b + t * x_l + h * x_h + j, mask=inside)
    tl.store(out + b * out_b + t * out_l + h * out_h + j, value, mask=inside)


def forward(x: Tensor, out: Tensor) -> None:
    samples, length, heads, width = x.shape
    if not x.numel():
        return
    columns = min(triton.next_power_of_2(width), 4096)
    rows = min(triton.next_power_of_2(heads), 4096 // columns)
    grid = (samples * length, triton.cdiv(heads, rows), triton.cdiv(width, columns))
    _forward[grid](
        x, *strides(x), out, *strides(out), length, heads, width, HEADS=rows, WIDTH=columns
    )  # fmt: skip
