"""q, k and what they become; backward: two gradients, q, k and two more."""

import torch
import torch.nn.functional as F
from ops.case import Case, Size, random
from torch import Tensor

from vidgen.runtime import ops


def turned(x: Tensor, scale: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    normal = F.rms_norm(x, x.shape[-1:], scale, 1e-6)
    first, second = normal.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def plain(
    q: Tensor, k: Tensor, q_scale: Tensor, k_scale: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    return turned(q, q_scale, cos, sin), turned(k, k_scale, cos, sin)


def case(size: Size, device: torch.device, dtype: torch.dtype) -> Case:
    head = size.width // size.heads
    q, k = (random((1, size.tokens, size.heads, head), device, dtype) for _ in range(2))
    scales = [random((head,), device, dtype) for _ in range(2)]
    angle = torch.rand(size.tokens, head // 2, device=device) * 100
    inputs = (q, k, *scales, angle.cos(), angle.sin())
    return Case(ops.qk_norm_rope, plain, inputs, 4 * q.nbytes, 6 * q.nbytes)
