"""Size, shape and texture of one object, from its mask and the pixels under it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidgen.data.synthetic.scene_judge.segment import Mask
from vidgen.data.synthetic.scenes.render import outline
from vidgen.data.synthetic.scenes.world import CLEAR, SHAPES

SIZE_LIMITS = (8.5, 25.0)  # radius of the circle with the same area
MIN_OVERLAP = 0.70  # of the mask with the closest shape's template
STRIPED = 0.13  # relative deviation of brightness from row to row


def size(radius: float) -> str | None:
    """The nearest named size, in ratio."""
    if not SIZE_LIMITS[0] <= radius <= SIZE_LIMITS[1]:
        return None
    return min(CLEAR.radius, key=lambda name: abs(np.log(radius / CLEAR.radius[name])))


def aligned(
    values_THW: NDArray[np.float32],
    centre_T2: NDArray[np.float64],
    reach: int,
    seen_THW: Mask | None = None,
) -> NDArray[np.float64]:
    """The mean of windows around the centres, (2 reach + 1, 2 reach + 1), over the pixels `seen`.

    NaN where there are none; frames without a centre are left out.
    """
    frames, height, width = values_THW.shape
    offset = np.arange(-reach, reach + 1)
    total = np.zeros((len(offset), len(offset)))
    count = np.zeros_like(total)
    for frame in range(frames):
        x, y = centre_T2[frame]
        if np.isnan(x):
            continue
        cols, rows = np.floor(x + offset).astype(int), np.floor(y + offset).astype(int)
        inside_c, inside_r = (cols >= 0) & (cols < width), (rows >= 0) & (rows < height)
        place, source = np.ix_(inside_r, inside_c), np.ix_(rows[inside_r], cols[inside_c])
        counted = 1.0 if seen_THW is None else seen_THW[frame][source].astype(np.float64)
        total[place] += values_THW[frame][source] * counted
        count[place] += counted
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
    video_THWC: NDArray[np.float32],
    centre_T2: NDArray[np.float64],
    radius: float,
    mask_THW: Mask,
) -> str:
    """From the brightness of rows through the middle of the object."""
    reach = int(radius)
    bright = aligned(video_THWC.max(-1), centre_T2, reach, mask_THW)
    half = max(2, int(0.35 * radius))
    tall = max(4, int(0.62 * radius))
    middle = bright[reach - tall : reach + tall + 1, reach - half : reach + half + 1]
    seen = ~np.isnan(middle)
    count = seen.sum(1)
    rows = np.where(seen, middle, 0).sum(1)[count > 0] / count[count > 0]
    if len(rows) < 3:
        return "plain"
    return "striped" if float(rows.std() / max(rows.mean(), 1e-6)) > STRIPED else "plain"


@dataclass(frozen=True)
class Placed:
    """An outline laid over a mask."""

    centre: NDArray[np.float64]  # (x, y)
    wrong: float  # pixels that disagree


def hidden(
    mask_HW: Mask, others_HW: Mask, guess: NDArray[np.float64], shape: str, radius: float
) -> Placed:
    """Where an object of known outline is whose other part lies behind `others`.

    Its outline covers the mask, and of the rest as little as possible lies outside the others.
    """
    reach = int(2.6 * radius) + 4
    x0, y0 = max(0, int(guess[0]) - reach), max(0, int(guess[1]) - reach)
    rows, cols = slice(y0, y0 + 2 * reach), slice(x0, x0 + 2 * reach)
    mask, free = mask_HW[rows, cols], ~(mask_HW | others_HW)[rows, cols]
    grid_x, grid_y = np.arange(mask.shape[1]) + x0 + 0.5, np.arange(mask.shape[0]) + y0 + 0.5

    def wrong(x: float, y: float) -> float:
        cover = outline(shape, grid_x[None, :] - x, grid_y[:, None] - y, radius) > 0.5
        return float((mask & ~cover).sum() + (cover & free).sum())

    best = Placed(guess, wrong(*guess))
    for step, count in ((4.0, int(radius / 4) + 1), (1.5, 2), (0.5, 2)):
        middle = best.centre
        for i in range(-count, count + 1):
            for j in range(-count, count + 1):
                at = middle + step * np.array([i, j])
                found = wrong(*at)
                if found < best.wrong:
                    best = Placed(at, found)
    return best


def guessed(masks_THW: Mask, others_THW: Mask, centre_T2: NDArray[np.float64]) -> tuple[str, float]:
    """Shape and radius of an object that is never seen whole: those that explain most of it."""
    area = masks_THW.sum((1, 2))
    frames = np.argsort(-area, kind="stable")[:3]
    wrong = {
        (shape, size): sum(
            hidden(masks_THW[t], others_THW[t], centre_T2[t], shape, CLEAR.radius[size]).wrong
            for t in frames
        )
        for shape in SHAPES
        for size in CLEAR.radius
    }
    shape, size = min(wrong, key=lambda key: wrong[key])
    return shape, CLEAR.radius[size]
