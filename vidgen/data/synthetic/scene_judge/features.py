"""A video as a few numbers of about unit size: what the Fréchet distance compares."""

import numpy as np
from numpy.typing import NDArray

from vidgen.data.synthetic.scene_judge import picture, segment

NAMES = (
    *(f"area {name}" for name in segment.HUES),
    *("brightness", "contrast", "ghosting", "sharpness", "flicker", "change"),
    *("x", "y", "moved x", "moved y", "spread", "background x", "background y"),
)


def features(frames_THWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """One row, in the order of NAMES."""
    video = frames_THWC.astype(np.float32) / 255
    found = segment.masks(video)
    objects = np.zeros(video.shape[:3], dtype=bool)
    for mask in found.values():
        objects |= mask
    side = video.shape[1]
    middle = np.nan_to_num(segment.centres(objects) / side, nan=0.5)
    spread = float(np.log(np.maximum(segment.spread(objects), 0.1)).mean())
    grey = video.mean(-1)
    background = picture.background_motion(video, objects)
    row = [
        *(20 * float(mask.mean()) for mask in found.values()),
        5 * float(grey.mean()),
        20 * picture.contrast(video, objects),
        20 * picture.ghosting(video, objects),
        3 * picture.sharpness(video, objects),
        200 * picture.flicker(video, objects),
        50 * float(np.abs(np.diff(grey, axis=0)).mean()) if len(grey) > 1 else 0.0,
        *(3 * middle.mean(0)),
        *(4 * (middle[-1] - middle[0])),
        spread,
        *background,
    ]
    return np.nan_to_num(np.array(row, dtype=np.float64))
