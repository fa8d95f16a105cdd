"""x and the result; backward: the gradient, x and its gradient."""

import torch
import torch.nn.functional as F
from ops.case import Case, Size, random
from torch import Tensor

from vidgen.runtime import ops


def plain(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def case(size: Size, device: torch.device, dtype: torch.dtype) -> Case:
    x = random((1, size.tokens, size.width), device, dtype)
    return Case(ops.gelu_tanh, plain, (x,), 2 * x.nbytes, 3 * x.nbytes)
