"""video_to_input in Triton: a table look-up per pixel, in output order."""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _forward(
    frames_u8, of_sample, of_frame, of_line, table, flip, out,
    total, channels, frames, height, width, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    w = at % width
    h = at // width % height
    t = at // width // height % frames
    c = at // width // height // frames % channels
    b = at // width // height // frames // channels
    mirrored = tl.load(flip + b, mask=inside, other=0) != 0
    source = tl.where(mirrored, width - 1 - w, w)
    pixel_at = b * of_sample + t * of_frame + h * of_line + source * channels + c
    pixel = tl.load(frames_u8 + pixel_at, mask=inside, other=0).to(tl.int32)
    tl.store(out + at, tl.load(table + c * 256 + pixel, mask=inside), mask=inside)


def forward(frames_u8_BTHWC: Tensor, table: Tensor, flip: Tensor, out: Tensor) -> None:
    _, frames, height, width, channels = frames_u8_BTHWC.shape
    if out.numel():
        _forward[(triton.cdiv(out.numel(), _BLOCK),)](
            frames_u8_BTHWC, *frames_u8_BTHWC.stride()[:3], table, flip, out,
            out.numel(), channels, frames, height, width, BLOCK=_BLOCK,
        )  # fmt: skip
