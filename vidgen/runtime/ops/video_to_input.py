"""Decoded frames to the autoencoder's input."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from vidgen.runtime.ops import dispatch, kernels
from vidgen.runtime.ops.registry import define

PerChannel = float | Sequence[float]


def video_to_input(
    frames_u8_BTHWC: Tensor,
    mean: PerChannel,
    std: PerChannel,
    dtype: torch.dtype,
    flip: Tensor | None = None,
) -> Tensor:
    """(frames / 255 - mean) / std as (B, C, T, H, W) of the type asked for.

    mean and std are one number, or one for each channel. flip, (B) of bool, mirrors those samples
    left to right. The result is rounded once, from float64.
    """
    if frames_u8_BTHWC.dtype != torch.uint8 or frames_u8_BTHWC.dim() != 5:
        raise ValueError(
            f"video_to_input: frames are {frames_u8_BTHWC.dtype} of shape "
            f"{tuple(frames_u8_BTHWC.shape)}, expected uint8 (B, T, H, W, C)"
        )
    channels = frames_u8_BTHWC.shape[-1]
    means, stds = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
    if flip is None:
        flip = frames_u8_BTHWC.new_zeros(frames_u8_BTHWC.shape[0], dtype=torch.bool)
    if dtype not in dispatch.KERNEL_TYPES or (
        dispatch.choose("video_to_input", frames_u8_BTHWC) == "reference"
    ):
        return reference(frames_u8_BTHWC, means, stds, dtype, flip)
    out_BCTHW: Tensor = torch.ops.vidgen.video_to_input(frames_u8_BTHWC, means, stds, dtype, flip)
    return out_BCTHW


def _per_channel(name: str, value: PerChannel, channels: int) -> list[float]:
    values = [float(value)] * channels if isinstance(value, int | float) else [*map(float, value)]
    if len(values) != channels:
        raise ValueError(f"video_to_input: {len(values)} values of {name} for {channels} channels")
    return values


def _table(
    mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What every pixel value of every channel becomes: (C, 256)."""
    pixels = torch.arange(256, dtype=torch.float64, device=device) / 255
    means, stds = torch.tensor([mean, std], dtype=torch.float64, device=device)
    return ((pixels - means[:, None]) / stds[:, None]).to(dtype)


@lru_cache(maxsize=64)
def _kept_table(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The kernel's table, kept for later calls: a copy from pageable memory waits for the GPU, and
    a CUDA graph cannot capture it."""
    return _table(mean, std, dtype, torch.device("cpu")).to(device)


def reference(
    frames: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, flip: Tensor
) -> Tensor:
    table = _table(mean, std, dtype, frames.device)
    planes = frames.permute(0, 4, 1, 2, 3)
    channels = torch.arange(len(mean), device=frames.device).view(1, -1, 1, 1, 1)
    out = table[channels, planes.long()]
    return torch.where(flip.bool().view(-1, 1, 1, 1, 1), out.flip(-1), out).contiguous()


def _forward(
    frames: Tensor, mean: list[float], std: list[float], dtype: torch.dtype, flip: Tensor
) -> Tensor:
    out = _empty(frames, mean, std, dtype, flip)
    if frames.stride(-1) != 1 or frames.stride(-2) != frames.shape[-1]:
        frames = frames.contiguous()
    table = _kept_table(tuple(mean), tuple(std), dtype, frames.device)
    mirrored = flip.to(torch.uint8).contiguous()
    kernels.run("video_to_input", "forward", frames, table, mirrored, out)
    return out


def _empty(
    frames: Tensor, mean: list[float], std: list[float], dtype: torch.dtype, flip: Tensor
) -> Tensor:
    b, t, h, w, c = frames.shape
    return frames.new_empty((b, c, t, h, w), dtype=dtype)


define(
    "video_to_input(Tensor frames, float[] mean, float[] std, ScalarType dtype, Tensor flip)"
    " -> Tensor",
    _forward,
    _empty,
)
