"""x and the result; backward: the gradient, x and its gradient."""

import torch
import torch.nn.functional as F
from ops.case import Case, Size, random
from torch import Tensor

from vidgen.runtime import ops


def plain(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (1 + scale[:, None]) * F.layer_norm(x, x.shape[-1:], eps=1e-6) + shift[:, None]


def case(size: Size, device: torch.device, dtype: torch.dtype) -> Case:
    x = random((1, size.tokens, size.width), device, dtype)
    shift, scale = (random((1, size.width), device, dtype) for _ in range(2))
    return Case(ops.modulate, plain, (x, shift, scale), 2 * x.nbytes, 3 * x.nbytes)
