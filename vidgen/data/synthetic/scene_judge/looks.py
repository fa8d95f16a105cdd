"""Size, shape and texture of one object, from its mask and the pixels under it."""

import numpy as np
from numpy.typing import NDArray

from vidgen.data.synthetic.scene_judge.segment import Mask
from vidgen.data.synthetic.scenes.render import outline
from vidgen.data.synthetic.scenes.world import SHAPES, SIZES

SIZE_LIMITS = (6.5, 20.0)  # radius of the circle with the same area
MIN_OVERLAP = 0.70  # of the mask with the closest shape's template
STRIPED = 0.13  # relative deviation of brightness from row to row


def size(radius: float) -> str | None:
    """The nearest named size, in ratio."""
    if not SIZE_LIMITS[0] <= radius <= SIZE_LIMITS[1]:
        return None
    return min(SIZES, key=lambda name: abs(np.log(radius / SIZES[name])))


def aligned(
    values_THW: NDArray[np.float32], centre_T2: NDArray[np.float64], reach: int
) -> NDArray[np.float64]:
    """The mean of windows around the centres, (2 reach + 1, 2 reach + 1); NaN beyond the picture."""
    frames, height, width = values_THW.shape
    offset = np.arange(-reach, reach + 1)
    total = np.zeros((len(offset), len(offset)))
    count = np.zeros_like(total)
    for frame, (x, y) in enumerate(centre_T2):
        cols, rows = np.floor(x + offset).astype(int), np.floor(y + offset).astype(int)
        inside_c, inside_r = (cols >= 0) & (cols < width), (rows >= 0) & (rows < height)
        place = np.ix_(inside_r, inside_c)
        total[place] += values_THW[frame][np.ix_(rows[inside_r], cols[inside_c])]
        count[place] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def shape(mask: Mask, centre_T2: NDArray[np.float64], radius: float) -> str | None:
    """The outline whose overlap with the mean mask is largest."""
    reach = int(2 * radius) + 2
    mean = np.nan_to_num(aligned(mask.astype(np.float32), centre_T2, reach))
    x, y = np.meshgrid(*(np.arange(-reach, reach + 1, dtype=np.float64),) * 2)
    overlap = {}
    for name in SHAPES:
        template = outline(name, x, y, radius)
        overlap[name] = np.minimum(mean, template).sum() / np.maximum(mean, template).sum()
    best = max(overlap, key=lambda name: overlap[name])
    return best if overlap[best] > MIN_OVERLAP else None


def texture(
    video_THWC: NDArray[np.float32], centre_T2: NDArray[np.float64], radius: float
) -> str:
    """From the brightness of rows through the middle of the object."""
    reach = int(radius)
    bright = aligned(video_THWC.max(-1), centre_T2, reach)
    half = max(2, int(0.35 * radius))
    tall = max(4, int(0.62 * radius))
    rows = np.nanmean(bright[reach - tall : reach + tall + 1, reach - half : reach + half + 1], 1)
    return "striped" if float(rows.std() / max(rows.mean(), 1e-6)) > STRIPED else "plain"


def hidden_centre(
    mask_HW: Mask, others_HW: Mask, guess: NDArray[np.float64], shape: str, radius: float
) -> NDArray[np.float64]:
    """Where an object of known outline is whose other part lies behind `others`; NaN if nowhere.

    Its outline covers the mask, and of the rest as little as possible lies outside the others.
    """
    grid_x, grid_y = np.arange(mask_HW.shape[1]) + 0.5, np.arange(mask_HW.shape[0]) + 0.5
    steps = np.arange(-int(radius) - 1, int(radius) + 2)
    best, least = np.full(2, np.nan), 0.35 * np.pi * radius**2
    free = ~(mask_HW | others_HW)
    for dy in steps:
        for dx in steps:
            x, y = guess[0] + dx, guess[1] + dy
            cover = outline(shape, grid_x[None, :] - x, grid_y[:, None] - y, radius) > 0.5
            wrong = float((mask_HW & ~cover).sum() + (cover & free).sum())
            wrong += 0.01 * float(np.hypot(dx, dy))
            if wrong < least:
                best, least = np.array([x, y]), wrong
    return best
