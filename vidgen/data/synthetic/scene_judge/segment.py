"""Which pixels belong to which colour's object, and where each object is."""

import numpy as np
from numpy.typing import NDArray

from vidgen.data.synthetic.scenes.world import COLOURS

MIN_CHROMA = 0.17  # largest minus smallest channel, of 1: what is an object, not background
MAX_HUE_GAP = 25.0  # degrees from a named colour
MIN_AREA = 70.0  # pixels
WHOLE = 0.93  # of its largest area: the object is seen whole, its centre can be trusted
Mask = NDArray[np.bool_]


def chroma(video_THWC: NDArray[np.float32]) -> NDArray[np.float32]:
    return video_THWC.max(-1) - video_THWC.min(-1)


def hue(video_THWC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Degrees, as in HSV; 0 for grey."""
    red, green, blue = np.moveaxis(video_THWC, -1, 0)
    top = video_THWC.max(-1)
    span = np.maximum(top - video_THWC.min(-1), 1e-6)
    sixth = np.where(
        top == red,
        ((green - blue) / span) % 6,
        np.where(top == green, (blue - red) / span + 2, (red - green) / span + 4),
    )
    return (60 * sixth).astype(np.float32)


HUES = {
    name: float(hue(np.array([rgb], np.float32) / np.float32(255))[0])
    for name, rgb in COLOURS.items()
}


def masks(video_THWC: NDArray[np.float32]) -> dict[str, Mask]:
    """For each colour the pixels that have it, (T, H, W)."""
    strong = chroma(video_THWC) > MIN_CHROMA
    seen = hue(video_THWC)
    found = {}
    for name, own in HUES.items():
        gap = np.abs(seen - own)
        found[name] = strong & (np.minimum(gap, 360 - gap) < MAX_HUE_GAP)
    return found


def areas(mask: Mask) -> NDArray[np.int64]:
    return mask.sum((1, 2))


def whole(mask: Mask) -> Mask:
    """Frames (T,) in which the object is seen whole; at least one."""
    area = areas(mask)
    most = np.sort(area)[-min(2, len(area))]  # one frame alone may be wrong
    found: Mask = (area >= WHOLE * most) & (area >= min(MIN_AREA, most))
    return found


def centres(mask: Mask) -> NDArray[np.float64]:
    """Centroids (T, 2) as (x, y) of pixel centres; NaN where a frame has none."""
    count = np.maximum(areas(mask), 1)
    grid = np.arange(mask.shape[2]) + 0.5
    rows = np.arange(mask.shape[1]) + 0.5
    x = (mask.sum(1) * grid).sum(1) / count
    y = (mask.sum(2) * rows).sum(1) / count
    found = np.stack([x, y], axis=-1)
    found[areas(mask) == 0] = np.nan
    return found


def spread(mask: Mask) -> NDArray[np.float64]:
    """Mean squared distance from the centroid over that of a disc with the same area, (T,)."""
    middle = centres(mask)
    x = np.arange(mask.shape[2]) + 0.5 - middle[:, :1]
    y = np.arange(mask.shape[1]) + 0.5 - middle[:, 1:]
    square = (mask.sum(1) * x**2).sum(1) + (mask.sum(2) * y**2).sum(1)
    area = np.maximum(areas(mask), 1)
    return square / area / (area / (2 * np.pi))


def grown(mask: Mask, by: int) -> Mask:
    """Every pixel within `by` rows and columns of the mask."""
    found = mask.copy()
    for axis in (1, 2):
        whole = found.copy()
        for step in range(1, by + 1):
            ahead, behind = [slice(None)] * 3, [slice(None)] * 3
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            whole[tuple(ahead)] |= found[tuple(behind)]
            whole[tuple(behind)] |= found[tuple(ahead)]
        found = whole
    return found
