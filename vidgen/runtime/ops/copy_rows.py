"""Tokens of one strided tensor into a part of another, at the speed of a copy."""

import torch
from torch import Tensor

from vidgen.runtime.ops import dispatch, kernels
from vidgen.runtime.ops.registry import define


def copy_rows(x_BLHD: Tensor, out_BLHD: Tensor) -> None:
    """Writes x to out, without gradients; out's last dimension is contiguous."""
    if x_BLHD.shape != out_BLHD.shape or x_BLHD.dim() != 4 or x_BLHD.dtype != out_BLHD.dtype:
        raise ValueError(
            f"copy_rows: x is {x_BLHD.dtype} {tuple(x_BLHD.shape)} and out {out_BLHD.dtype} "
            f"{tuple(out_BLHD.shape)}, expected both (B, L, H, D) of one dtype"
        )
    if dispatch.choose("copy_rows", x_BLHD) == "reference":
        reference(x_BLHD, out_BLHD)
    else:
        torch.ops.vidgen.copy_rows(x_BLHD, out_BLHD)


def reference(x: Tensor, out: Tensor) -> None:
    out.copy_(x)


def launch(x_BLHD: Tensor, out_BLHD: Tensor) -> None:
    """The kernel alone, for the ops that are made of it."""
    kernels.run("copy_rows", "forward", kernels.rows(x_BLHD), out_BLHD)


define("copy_rows(Tensor x, Tensor(a!) out) -> ()", launch, lambda x, out: None)
