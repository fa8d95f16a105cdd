"""What is measured of a picture beside its objects: ghosts, edges, background, camera, flicker."""

import numpy as np
from numpy.typing import NDArray

from vidgen.data.synthetic.scene_judge.segment import MIN_CHROMA, Mask, chroma, grown
from vidgen.data.synthetic.scenes.world import DIRECTIONS, PAN

FAINT = 0.085  # chroma above that of any background
MARGIN = 4  # pixels around objects that count as neither
AHEAD = 4  # frames over which the background's motion is measured
REACH = 9  # pixels it may have moved by then
Video = NDArray[np.float32]


def ghosting(video: Video, objects: Mask) -> float:
    """Share of the pixels away from all objects that have a faint colour."""
    outside = ~grown(objects, MARGIN)
    return float((chroma(video)[outside] > FAINT).mean()) if outside.any() else 0.0


def sharpness(video: Video, objects: Mask) -> float:
    """Steepest change of colour near the objects' edges over their chroma, a pixel; 0 without."""
    colour = chroma(video)
    inside = colour[objects]
    if inside.size < 50:
        return 0.0
    rise = np.zeros_like(colour)
    for axis in (1, 2):
        step = np.abs(np.diff(colour, axis=axis))
        pad = [(0, 0)] * 3
        pad[axis] = (0, 1)
        rise = np.maximum(rise, np.pad(step, pad))
    edge = grown(objects, 1) & grown(~objects, 1)
    return float(np.percentile(rise[edge], 75) / max(float(np.median(inside)), MIN_CHROMA))


def contrast(video: Video, objects: Mask) -> float:
    """Deviation of the background's brightness."""
    outside = ~grown(objects, MARGIN)
    return float(video.mean(-1)[outside].std()) if outside.any() else 0.0


def background_motion(video: Video, objects: Mask) -> tuple[float, float]:
    """(x, y) pixels a frame, along one axis: the shift at which later frames match best."""
    frames = len(video)
    ahead = min(AHEAD, frames - 1)
    if ahead < 1:
        return 0.0, 0.0
    grey, outside = video.mean(-1), ~grown(objects, MARGIN)
    every = max(1, (frames - ahead) // 8)  # pairs of frames enough to tell
    early_all, late_all = grey[:-ahead:every], grey[ahead::every]
    early_free, late_free = outside[:-ahead:every], outside[ahead::every]
    best, least = (0.0, 0.0), np.inf
    shifts = (
        {(0, 0)}
        | {(s, 0) for s in range(-REACH, REACH + 1)}
        | {(0, s) for s in range(-REACH, REACH + 1)}
    )
    for dx, dy in sorted(shifts, key=lambda s: abs(s[0]) + abs(s[1])):
        early, late = _overlap(early_all, dx, dy), _overlap(late_all, -dx, -dy)
        seen = _overlap(early_free, dx, dy) & _overlap(late_free, -dx, -dy)
        if seen.sum() < 200:
            continue
        error = float(np.square(early - late)[seen].mean())
        if error < least:
            best, least = (dx / ahead, dy / ahead), error
    return best


def _overlap(x: NDArray, dx: int, dy: int) -> NDArray:
    """The part of pictures that is still there when they move by (dx, dy)."""
    rows = slice(max(0, -dy), x.shape[1] - max(0, dy))
    cols = slice(max(0, -dx), x.shape[2] - max(0, dx))
    return x[:, rows, cols]


def camera(motion: tuple[float, float]) -> str | None:
    """The direction the camera pans: the background moves the other way. None: it stays still."""
    x, y = motion
    if max(abs(x), abs(y)) < PAN / 2:
        return None
    return next(
        name
        for name, (dx, dy) in DIRECTIONS.items()
        if (dx, dy)
        == (-np.sign(x) if abs(x) > abs(y) else 0, -np.sign(y) if abs(y) > abs(x) else 0)
    )


def flicker(video: Video, objects: Mask) -> float:
    """Mean second difference in time of the background's brightness."""
    if len(video) < 3:
        return 0.0
    outside = ~grown(objects, MARGIN)
    grey = video.mean(-1)
    bend = np.abs(grey[2:] - 2 * grey[1:-1] + grey[:-2])
    seen = outside[2:] & outside[1:-1] & outside[:-2]
    return float(bend[seen].mean()) if seen.any() else 0.0


def agreement(frames_NHWC: NDArray[np.uint8], given_NHWC: NDArray[np.uint8]) -> float:
    """PSNR in decibels of frames that were given with what the video shows in their place."""
    error = np.square((frames_NHWC.astype(np.float64) - given_NHWC) / 255).mean()
    return float(-10 * np.log10(max(error, 1e-10)))
