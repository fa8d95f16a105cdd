"""Attention's output and the perceptron's activation side by side, as a single block's last
projection reads them."""

from typing import Any

import torch
from torch import Tensor

from vidgen.runtime.ops import dispatch, kernels
from vidgen.runtime.ops.copy_rows import launch as copy_rows
from vidgen.runtime.ops.registry import define


def attention_mlp(attended_BLHD: Tensor, packed_BLP: Tensor, mlp_BLM: Tensor) -> Tensor:
    """(B, L, H D + M): attention's output beside gelu_tanh of packed's last M features.

    `mlp_BLM` is what `qkv_mlp` promised of the same `packed_BLP`.
    """
    if dispatch.choose("attention_mlp", packed_BLP) == "reference":
        return reference(attended_BLHD, mlp_BLM)
    out: Tensor = torch.ops.vidgen.attention_mlp(attended_BLHD, packed_BLP, mlp_BLM)
    return out


def reference(attended_BLHD: Tensor, mlp_BLM: Tensor) -> Tensor:
    return torch.cat((attended_BLHD.flatten(2), mlp_BLM), dim=-1)


def _join(attended: Tensor, packed: Tensor, mlp: Tensor) -> Tensor:
    out = _empty_join(attended, packed, mlp)
    heads, width = attended.shape[2:]
    left, right = out.split((heads * width, mlp.shape[-1]), dim=-1)
    copy_rows(attended, left.unflatten(-1, (heads, width)))
    if right.numel():
        hidden = kernels.rows(packed)[..., 3 * heads * width :]
        kernels.run("gelu_tanh", "forward", hidden, right)
    return out


def _empty_join(attended: Tensor, packed: Tensor, mlp: Tensor) -> Tensor:
    b, length, heads, width = attended.shape
    return attended.new_empty((b, length, heads * width + mlp.shape[-1]))


def _setup_join(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.heads, ctx.width = inputs[0].shape[2:]


def _join_gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    """Views: of attention's output, and of the promise."""
    of_attended, of_mlp = grad_out.tensor_split((ctx.heads * ctx.width,), dim=-1)
    return of_attended.unflatten(-1, (ctx.heads, ctx.width)), None, of_mlp


define(
    "attention_mlp(Tensor attended, Tensor packed, Tensor mlp) -> Tensor",
    _join,
    _empty_join,
    _join_gradient,
    _setup_join,
)
