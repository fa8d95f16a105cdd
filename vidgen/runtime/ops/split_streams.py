"""The joint attention's output as the two streams of a dual-stream block."""

from typing import Any

import torch
from torch import Tensor

from vidgen.runtime.ops import dispatch
from vidgen.runtime.ops.copy_rows import launch as copy_rows
from vidgen.runtime.ops.registry import define


def split_streams(joint_BLHD: Tensor, text: int) -> tuple[Tensor, Tensor]:
    """(B, text, H D) of the text and (B, L - text, H D) of the video, each contiguous.

    Of one sample they are views. Their gradients are written side by side, without padding.
    """
    if dispatch.choose("split_streams", joint_BLHD) == "reference":
        return reference(joint_BLHD, text)
    txt, img = _Streams.apply(joint_BLHD, text)
    return txt, img


def reference(joint_BLHD: Tensor, text: int) -> tuple[Tensor, Tensor]:
    joint_BLC = joint_BLHD.flatten(2)
    return joint_BLC[:, :text], joint_BLC[:, text:]


class _Streams(torch.autograd.Function):
    """Not an op of its own: those may not return views."""

    @staticmethod
    def forward(ctx: Any, joint: Tensor, text: int) -> tuple[Tensor, ...]:
        ctx.heads = joint.shape[2]
        parts = [part.flatten(2) for part in joint.tensor_split((text,), dim=1)]
        if all(part.is_contiguous() for part in parts):
            return tuple(parts)
        copies: tuple[Tensor, ...] = torch.ops.vidgen.split_streams(joint, text)
        return copies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return torch.ops.vidgen.join_streams(*grads, ctx.heads), None


def _streams(joint: Tensor, text: int) -> tuple[Tensor, ...]:
    outputs = _empty_streams(joint, text)
    for out, part in zip(outputs, joint.tensor_split((text,), dim=1), strict=True):
        copy_rows(part, out.unflatten(-1, joint.shape[2:]))
    return outputs


def _empty_streams(joint: Tensor, text: int) -> tuple[Tensor, ...]:
    b, length, heads, width = joint.shape
    return tuple(joint.new_empty((b, n, heads * width)) for n in (text, length - text))


def _join_streams(txt: Tensor, img: Tensor, heads: int) -> Tensor:
    joint = _empty_joint(txt, img, heads)
    for part, out in zip((txt, img), joint.tensor_split((txt.shape[1],), dim=1), strict=True):
        copy_rows(part.unflatten(-1, out.shape[2:]), out)
    return joint


def _empty_joint(txt: Tensor, img: Tensor, heads: int) -> Tensor:
    b, text, features = txt.shape
    return txt.new_empty((b, text + img.shape[1], heads, features // heads))


define(
    "split_streams(Tensor joint, SymInt text) -> (Tensor txt, Tensor img)", _streams, _empty_streams
)
define("join_streams(Tensor txt, Tensor img, SymInt heads) -> Tensor", _join_streams, _empty_joint)
