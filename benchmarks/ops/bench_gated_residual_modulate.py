"""x, y and two results; backward: two gradients, the residual, y and two more."""

import torch
import torch.nn.functional as F
from ops.case import Case, Size, random
from torch import Tensor

from vidgen.runtime import ops


def plain(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    residual = x + gate[:, None] * y
    normal = F.layer_norm(residual, x.shape[-1:], eps=1e-6)
    return residual, (1 + scale[:, None]) * normal + shift[:, None]


def case(size: Size, device: torch.device, dtype: torch.dtype) -> Case:
    x, y = (random((1, size.tokens, size.width), device, dtype) for _ in range(2))
    vectors = [random((1, size.width), device, dtype) for _ in range(3)]
    inputs = (x, y, *vectors)
    return Case(ops.gated_residual_modulate, plain, inputs, 4 * x.nbytes, 6 * x.nbytes)
