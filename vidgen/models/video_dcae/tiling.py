"""A video through an autoencoder in tiles of space and time that overlap and fade into each other.

Positions are latents: a tile of pixels is a whole number of them. Every tile has full size (the
last one of an axis is moved back to end with the video), so what runs is always one shape.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TileSpan:
    """One tile's place on an axis, in latents."""

    start: int
    stop: int


def spans(length: int, tile: int, overlap: float) -> list[TileSpan]:
    """Tiles that cover an axis, neighbours sharing at least `overlap` of a tile."""
    if length <= tile:
        return [TileSpan(0, length)]
    stride = max(1, tile - math.ceil(tile * overlap))
    starts = [*range(0, length - tile, stride), length - tile]
    return [TileSpan(start, start + tile) for start in starts]


def fades(axis: list[TileSpan], scale: int) -> list[Tensor]:
    """Each tile's weight along an axis of `scale` positions a latent; they add up to one.

    It rises over what a tile shares with the one before, falls over what it shares with the next.
    """
    weights = []
    for index, span in enumerate(axis):
        size = (span.stop - span.start) * scale
        at = torch.arange(size, dtype=torch.float32) + 0.5
        weight = torch.ones(size)
        if index > 0 and (shared := (axis[index - 1].stop - span.start) * scale) > 0:
            weight = torch.minimum(weight, at / shared)
        if index + 1 < len(axis) and (shared := (span.stop - axis[index + 1].start) * scale) > 0:
            weight = torch.minimum(weight, (size - at) / shared)
        weights.append(weight)
    total = torch.zeros(axis[-1].stop * scale)
    for span, weight in zip(axis, weights, strict=True):
        total[span.start * scale : span.stop * scale] += weight
    return [
        weight / total[span.start * scale : span.stop * scale]
        for span, weight in zip(axis, weights, strict=True)
    ]


def in_tiles(
    run: Callable[[Tensor], Tensor],
    x_BCTHW: Tensor,
    shape: tuple[int, int, int, int],
    tile: tuple[int, int, int],
    overlap: float,
) -> Tensor:
    """`run` over tiles of the input, blended into an output of `shape` (C, T, H, W).

    `tile` is in latents, of which the smaller of input and output is made. Beyond input and output
    the memory needed is that of one tile.
    """
    sizes, out_sizes = tuple(x_BCTHW.shape[2:]), shape[1:]
    latents = tuple(min(pair) for pair in zip(sizes, out_sizes, strict=True))
    axes = [spans(n, t, overlap) for n, t in zip(latents, tile, strict=True)]
    if all(len(axis) == 1 for axis in axes):
        return run(x_BCTHW)
    scales = [size // n for size, n in zip(sizes, latents, strict=True)]
    out_scales = [size // n for size, n in zip(out_sizes, latents, strict=True)]
    weights = [
        [weight.to(x_BCTHW.device) for weight in fades(axis, scale)]
        for axis, scale in zip(axes, out_scales, strict=True)
    ]
    out = torch.zeros((len(x_BCTHW), *shape), dtype=torch.float32, device=x_BCTHW.device)
    for choice in itertools.product(*(range(len(axis)) for axis in axes)):
        place = [axis[index] for axis, index in zip(axes, choice, strict=True)]
        t, h, w = (weight[index] for weight, index in zip(weights, choice, strict=True))
        part = run(x_BCTHW[_slices(place, scales)]).float()
        part *= t[:, None, None] * h[:, None] * w
        out[_slices(place, out_scales)] += part
    return out


def _slices(place: list[TileSpan], scales: list[int]) -> tuple[slice, ...]:
    return (
        slice(None),
        slice(None),
        *(slice(s.start * k, s.stop * k) for s, k in zip(place, scales, strict=True)),
    )
