"""Joining attention over two sets of keys into attention over their union."""

import torch
from torch import Tensor


def merge(
    out_a_BLHD: Tensor, lse_a_BHL: Tensor, out_b_BLHD: Tensor, lse_b_BHL: Tensor
) -> tuple[Tensor, Tensor]:
    """Both results in fp32 (fp64 stays); an LSE of -inf stands for an empty set of keys."""
    dtype = torch.promote_types(lse_a_BHL.dtype, torch.float32)
    lse_a, lse_b = lse_a_BHL.to(dtype), lse_b_BHL.to(dtype)
    # Where both sets are empty the difference is nan: neither side weighs anything there.
    nothing = torch.isneginf(lse_a) & torch.isneginf(lse_b)
    gap = torch.where(nothing, 0.0, lse_b) - torch.where(nothing, 0.0, lse_a)
    weight_b = torch.sigmoid(gap).transpose(1, 2).unsqueeze(-1)
    out_a = out_a_BLHD.to(dtype)
    out = out_a + weight_b * (out_b_BLHD.to(dtype) - out_a)
    joint = torch.logaddexp(torch.where(nothing, 0.0, lse_a), torch.where(nothing, 0.0, lse_b))
    return out, torch.where(nothing, -torch.inf, joint)
