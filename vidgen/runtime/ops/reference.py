"""Shared by the reference implementations: torch in float32, or float64 for float64 tensors."""

import torch
from torch import Tensor


def widen(tensor: Tensor, tokens: Tensor) -> Tensor:
    """The tensor in the dtype in which arithmetic on `tokens` runs."""
    return tensor.to(torch.float64 if tokens.dtype == torch.float64 else torch.float32)


def layer_norm(x_BLD: Tensor, eps: float) -> Tensor:
    centred = x_BLD - x_BLD.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
