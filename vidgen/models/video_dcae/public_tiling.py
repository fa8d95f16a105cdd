"""The public code's tiles: the last of an axis is cut off at the end, and neighbours fade linearly.

Positions are latents. A tile starts where the one before starts to overlap it, even when nothing of
it lies beyond: then the last tile adds little more than its seam. The latents that the published
generator was trained on were made this way.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Run = Callable[[Tensor], Tensor]


def in_public_tiles(
    run: Run,
    x_BCTHW: Tensor,
    shape: tuple[int, int, int, int],
    tile: tuple[int, int, int],
    overlap: float,
) -> Tensor:
    """`run` over tiles of the input, blended into an output of `shape` (C, T, H, W).

    `tile` is in latents, of which the smaller of input and output is made. Time is cut first, then
    rows and columns of each part.
    """
    sizes, out_sizes = tuple(x_BCTHW.shape[2:]), shape[1:]
    latents = tuple(min(pair) for pair in zip(sizes, out_sizes, strict=True))
    scales = [size // n for size, n in zip(sizes, latents, strict=True)]
    out_scales = [size // n for size, n in zip(out_sizes, latents, strict=True)]
    shared = [int(size * overlap) for size in tile]

    def cut(x: Tensor, axis: int) -> list[Tensor]:
        """Along time, rows or columns (0, 1, 2)."""
        scale, stride = scales[axis], tile[axis] - shared[axis]
        starts = list(range(0, x.shape[2 + axis] // scale, stride))
        # A single latent frame would be taken for an image. The tile before covers it already, and
        # its seam gives the new tile no weight.
        if axis == 0 and len(starts) > 1 and x.shape[2] // scale - starts[-1] == 1:
            starts.pop()
        return [
            x.narrow(2 + axis, s * scale, min(tile[axis] * scale, x.shape[2 + axis] - s * scale))
            for s in starts
        ]

    def joined(parts: list[Tensor], axis: int) -> Tensor:
        """Already blended neighbours; all but the last end where the next begins."""
        keep = (tile[axis] - shared[axis]) * out_scales[axis]
        ends = [*(part.narrow(2 + axis, 0, keep) for part in parts[:-1]), parts[-1]]
        return torch.cat(ends, dim=2 + axis)

    def blend(before: Tensor, part: Tensor, axis: int) -> None:
        _fade(before, part, 2 + axis, shared[axis] * out_scales[axis])

    def in_space(x: Tensor) -> Tensor:
        if latents[1] <= tile[1] and latents[2] <= tile[2]:
            return run(x)
        rows: list[Tensor] = []
        above: list[Tensor] = []
        for strip in cut(x, 1):
            row = [run(part) for part in cut(strip, 2)]
            # The order matters: a tile fades with neighbours that have faded with theirs.
            for column, part in enumerate(row):
                if above:
                    blend(above[column], part, 1)
                if column:
                    blend(row[column - 1], part, 2)
            rows.append(joined(row, 2))
            above = row
        return joined(rows, 1)

    if latents[0] <= tile[0]:
        return in_space(x_BCTHW)
    parts = [in_space(part) for part in cut(x_BCTHW, 0)]
    for before, part in pairwise(parts):
        blend(before, part, 0)
    return joined(parts, 0)


def _fade(before: Tensor, tile: Tensor, dim: int, extent: int) -> None:
    """Write into the tile's first positions a linear fade from the last of the one before."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    if not extent:
        return
    shape = [1] * tile.dim()
    shape[dim] = extent
    weight = (torch.arange(extent, device=tile.device) / extent).view(shape).to(tile.dtype)
    old = before.narrow(dim, before.shape[dim] - extent, extent)
    new = tile.narrow(dim, 0, extent)
    new.copy_(old * (1 - weight) + new * weight)
