"""Which motion a track of positions shows, and how far it is from the one asked for."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidgen.data.synthetic.scenes.place import EXTENT, bounced, travel
from vidgen.data.synthetic.scenes.world import (
    DIRECTIONS,
    HOP_FRAMES,
    ORBIT,
    SPEEDS,
    TURNS,
    Body,
    Motion,
)

Track = NDArray[np.float64]  # (T, 2), NaN where the object is not seen whole
STARTS = 97  # places tried along the line
SURE = 8  # frames before the first bounce


@dataclass(frozen=True)
class Fit:
    motion: Motion
    heading: str | None
    speed: str | None
    error: float  # mean distance, pixels
    path: Track  # where the object is in every frame, seen or not


def fits(track: Track, side: int, shape: str, radius: float) -> list[Fit]:
    """Every motion that a caption can name, at its best start and phase; the closest first."""
    found = [_stays(track)]
    for speed in SPEEDS:
        for turn in TURNS:
            found.append(_circles(track, turn, speed))
        for heading in DIRECTIONS:
            for motion in ("moves", "hops"):
                found.append(_along(track, motion, heading, speed, side, shape, radius))
    return sorted(found, key=lambda fit: fit.error)


def fit_of(found: list[Fit], body: Body) -> Fit:
    """The fit of the motion that a body is asked to make."""
    return next(
        fit
        for fit in found
        if (fit.motion, fit.heading, fit.speed) == (body.motion, body.heading, body.speed)
    )


def _error(track: Track, path: Track) -> float:
    return float(np.nanmean(np.hypot(*(track - path).T)))


def _stays(track: Track) -> Fit:
    path = np.tile(np.nanmedian(track, axis=0), (len(track), 1))
    return Fit("stays", None, None, _error(track, path), path)


def _circles(track: Track, turn: str, speed: str) -> Fit:
    """The best centre and first angle have a closed form: both paths about their means."""
    at = np.arange(len(track)) * TURNS[turn] * SPEEDS[speed] / ORBIT
    seen = ~np.isnan(track[:, 0])
    unit = ORBIT * np.exp(1j * at)
    place = track[:, 0] + 1j * track[:, 1]
    middle, mean = unit[seen].mean(), place[seen].mean()
    angle = np.angle((np.conj(unit[seen] - middle) * (place[seen] - mean)).sum())
    whole = np.exp(1j * angle) * (unit - middle) + mean
    path = np.stack([whole.real, whole.imag], axis=-1)
    return Fit("circles", turn, speed, _error(track, path), path)


def _along(
    track: Track, motion: Motion, heading: str, speed: str, side: int, shape: str, radius: float
) -> Fit:
    dx, dy = DIRECTIONS[heading]
    axis, sign = (0, dx) if dx else (1, dy)
    left, right, up, down = (extent * radius for extent in EXTENT[shape])
    low, high = ((left, side - right), (up, side - down))[axis]
    body = Body("", shape, "", "", motion, heading, speed)
    phases = np.arange(2 * HOP_FRAMES) if motion == "hops" else [0]
    gone = np.stack([travel(body, len(track), float(phase)) for phase in phases])  # (P, T)
    room = np.minimum(gone[:, min(SURE, len(track)) - 1], 0.8 * (high - low))
    along = np.linspace(0, 1, STARTS)[None, :] * (high - low - room)[:, None]  # (P, S)
    start = low + along if sign > 0 else high - along
    lines = bounced(start[:, :, None] + sign * gone[:, None, :], low, high)  # (P, S, T)
    apart = np.nanmean(np.abs(lines - track[None, None, :, axis]), axis=2)
    phase, best = np.unravel_index(int(apart.argmin()), apart.shape)
    path = np.empty_like(track)
    path[:, axis] = lines[phase, best]
    path[:, 1 - axis] = np.nanmedian(track[:, 1 - axis])
    return Fit(motion, heading, speed, _error(track, path), path)
