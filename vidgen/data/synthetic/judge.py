"""A judge of sampled shape videos that looks only at pixels: hue, outline, displacement."""

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidgen.data.synthetic.shapes import COLOURS, SHAPES, Scene, outline

MIN_CHROMA = 0.25  # max - min channel, of 1: what counts as the shape rather than background
MIN_AREA = 40  # pixels, in every frame looked at
MAX_PART = 0.5  # of the picture: a shape leaves room around it
MIN_TRAVEL = 5.0  # pixels between the first and the last frame


@dataclass(frozen=True)
class Verdict:
    """What is seen; None where nothing clear is."""

    colour: str | None
    shape: str | None
    direction: str | None

    def seen(self) -> dict[str, str | None]:
        return {"colour": self.colour, "shape": self.shape, "direction": self.direction}

    def matches(self, scene: Scene) -> dict[str, bool]:
        return {name: value == getattr(scene, name) for name, value in self.seen().items()}


def judge(frames_THWC: NDArray[np.uint8]) -> Verdict:
    video = frames_THWC.astype(np.float64) / 255
    chroma = video.max(-1) - video.min(-1)
    mask = chroma > MIN_CHROMA
    if (mask.sum((1, 2)) < MIN_AREA).any() or mask.mean() > MAX_PART:
        return Verdict(None, None, None)
    ink = np.median(video[mask], axis=0)
    if ink.max() - ink.min() < MIN_CHROMA:  # of every colour, which is of none
        return Verdict(None, None, None)
    centres = np.stack([_centroid(m) for m in mask])
    return Verdict(_colour(ink), _shape(mask, centres), _direction(centres))


def _centroid(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    rows, cols = np.nonzero(mask)
    return np.array([cols.mean(), rows.mean()])


def _colour(ink: NDArray[np.float64]) -> str | None:
    def hue(rgb: NDArray[np.float64]) -> float:
        return 360 * colorsys.rgb_to_hsv(*rgb)[0]

    seen = hue(ink)
    gaps = {}
    for name, rgb in COLOURS.items():
        gap = abs(seen - hue(np.array(rgb) / 255))
        gaps[name] = min(gap, 360 - gap)
    best = min(gaps, key=lambda name: gaps[name])
    return best if gaps[best] < 25 else None


def _direction(centres: NDArray[np.float64]) -> str | None:
    dx, dy = centres[-1] - centres[0]
    if max(abs(dx), abs(dy)) < MIN_TRAVEL or min(abs(dx), abs(dy)) > 0.5 * max(abs(dx), abs(dy)):
        return None
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def _shape(mask: NDArray[np.bool_], centres: NDArray[np.float64]) -> str | None:
    """The outline whose overlap with the mask, centred and averaged over frames, is largest."""
    side = mask.shape[1]
    reach = np.arange(side) - side // 2
    mean = np.zeros((side, side))
    for m, (cx, cy) in zip(mask, centres, strict=True):
        rows = np.round(reach + cy).astype(int)
        cols = np.round(reach + cx).astype(int)
        seen_r = (rows >= 0) & (rows < side)
        seen_c = (cols >= 0) & (cols < side)
        part = np.zeros((side, side))
        part[np.ix_(seen_r, seen_c)] = m[np.ix_(rows[seen_r], cols[seen_c])]
        mean += part / len(mask)
    area = mean.sum()
    overlap = {}
    for shape in SHAPES:
        x, y = np.meshgrid(reach, reach)
        radius = np.sqrt(area / FILL[shape])
        # A triangle's centroid lies a sixth of its height below the middle of its box.
        low = radius / 3 if shape == "triangle" else 0.0
        template = outline(shape, x, y + low, radius)
        overlap[shape] = np.minimum(mean, template).sum() / np.maximum(mean, template).sum()
    best = max(overlap, key=lambda name: overlap[name])
    return best if overlap[best] > 0.6 else None


# Area over radius squared.
FILL = {"circle": np.pi, "square": 4.0, "triangle": 2.0}
