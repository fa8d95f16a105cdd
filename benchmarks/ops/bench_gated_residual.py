"""x, y and the result; backward: the gradient, y and the gradient of y."""

import torch
from ops.case import Case, Size, random
from torch import Tensor

from vidgen.runtime import ops


def plain(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return x + gate[:, None] * y


def case(size: Size, device: torch.device, dtype: torch.dtype) -> Case:
    x, y = (random((1, size.tokens, size.width), device, dtype) for _ in range(2))
    gate = random((1, size.width), device, dtype)
    return Case(ops.gated_residual, plain, (x, y, gate), 3 * x.nbytes, 3 * x.nbytes)
