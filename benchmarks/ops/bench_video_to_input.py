"""A clip of 33 frames: a byte read and a number written for every pixel and channel."""

import torch
from ops.case import Case, Size
from torch import Tensor

from vidgen.runtime import ops


def case(size: Size, device: torch.device, dtype: torch.dtype) -> Case:
    u8 = torch.randint(0, 256, (1, 33, 256, 448, 3), dtype=torch.uint8, device=device)

    def op(u8: Tensor) -> Tensor:
        return ops.video_to_input(u8, 0.5, 0.5, dtype)

    def plain(u8: Tensor) -> Tensor:
        planes = u8.permute(0, 4, 1, 2, 3)
        return ((planes.float() / 255 - 0.5) / 0.5).to(dtype).contiguous()

    return Case(op, plain, (u8,), u8.nbytes * (1 + dtype.itemsize), None)
