"""One op with its inputs, as the benchmarks run it, and the bytes it cannot help moving."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Size:
    tokens: int
    width: int
    heads: int


@dataclass(frozen=True)
class Case:
    """`op` is ours, `plain` the same in eager torch; those of `inputs` with a gradient get one."""

    op: Callable[..., Any]
    plain: Callable[..., Any]
    inputs: Sequence[Any]
    forward_bytes: int
    backward_bytes: int | None  # None: it has no backward pass


def random(size: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(size, device=device).to(dtype).requires_grad_()
