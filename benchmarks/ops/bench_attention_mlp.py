"""Attention's output beside the activation of four times as many hidden features."""

import torch
import torch.nn.functional as F
from ops.case import Case, Size, random
from torch import Tensor

from vidgen.runtime import ops


def case(size: Size, device: torch.device, dtype: torch.dtype) -> Case:
    heads, head, hidden = size.heads, size.width // size.heads, 4 * size.width
    packed = random((1, size.tokens, 3 * size.width + hidden), device, dtype).detach()
    attended = random((1, size.tokens, heads, head), device, dtype).detach()
    promise = packed.new_empty(1, 1, 1).expand(1, size.tokens, hidden)

    def op(attended: Tensor, packed: Tensor) -> Tensor:
        return ops.attention_mlp(attended, packed, promise)

    def plain(attended: Tensor, packed: Tensor) -> Tensor:
        mlp = F.gelu(packed[..., 3 * size.width :], approximate="tanh")
        return torch.cat((attended.flatten(2), mlp), dim=-1)

    moved = 2 * 5 * size.tokens * size.width * dtype.itemsize
    return Case(op, plain, (attended, packed), moved, None)
