"""Shared by the Triton kernels: two-stage sums over tokens, and how rows are split."""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Depends only on the shape, so a sum has the same bits on every GPU.
_PROGRAMS = 528


def chunks(samples: int, tokens: int) -> tuple[int, int]:
    """(tokens per program, programs per sample)."""
    length = max(1, triton.cdiv(samples * tokens, _PROGRAMS))
    return length, triton.cdiv(tokens, length)


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides of all dimensions except the last, which is contiguous."""
    return tensor.stride()[:-1]


@triton.jit
def _add_chunks(partials, result, count, width, BLOCK: tl.constexpr) -> None:
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.program_id(1).to(tl.int64)
    inside = columns < width
    total = tl.zeros((BLOCK,), tl.float64)
    for chunk in range(count):
        at = (sample * count + chunk) * width + columns
        total += tl.load(partials + at, mask=inside, other=0.0).to(tl.float64)
    tl.store(result + sample * width + columns, total.to(tl.float32), mask=inside)


def add_chunks(partials_BCD: Tensor, result_BD: Tensor) -> None:
    """Sum the chunks of every sample, in order."""
    samples, count, width = partials_BCD.shape
    if result_BD.numel():
        grid = (triton.cdiv(width, 128), samples)
        _add_chunks[grid](partials_BCD, result_BD, count, width, BLOCK=128)


def partials(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def row_options(width: int) -> dict[str, Any]:
    """The block size that holds a row, and the number of warps."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}
