"""What a caption leaves open: where objects start, their phases, the background."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidgen.data.synthetic.scenes.world import (
    CLEAR,
    DIRECTIONS,
    HOP_FRAMES,
    ORBIT,
    PAN,
    REACH,
    SPEEDS,
    TURNS,
    Body,
    Scene,
    Setting,
)

SURE_FRAMES = 10  # an object keeps its first heading at least so long before it bounces
_TRIES = 60
_CROSSING_TRIES = 5000
# From the centroid to the picture's edge on the left, right, top and bottom, in body radii.
EXTENT = {
    "circle": (1.0, 1.0, 1.0, 1.0),
    "square": (REACH["square"],) * 4,
    "triangle": (
        REACH["triangle"],
        REACH["triangle"],
        *(REACH["triangle"] * f for f in (4 / 3, 2 / 3)),
    ),
}


@dataclass(frozen=True)
class Background:
    """Waves of brightness around a tinted grey."""

    tint: NDArray[np.float32]  # (3,)
    wave_W2: NDArray[np.float32]  # radians a pixel, (x, y)
    phase_W: NDArray[np.float32]
    height_W: NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """One take of a scene: everything `render` draws."""

    scene: Scene
    side: int
    centre_NT2: NDArray[np.float64]  # (x, y) in pixels
    background: Background
    shift_T2: NDArray[np.float64]  # how far the background has moved, (x, y) in pixels

    @property
    def order(self) -> tuple[int, ...]:
        """Objects from the back to the front."""
        numbers = tuple(range(len(self.scene.bodies)))
        return numbers if self.scene.relation == "behind" else numbers[::-1]


def travel(body: Body, frames: int, phase: float) -> NDArray[np.float64]:
    """Distance covered at each frame by an object that moves or hops, in pixels."""
    speed = SPEEDS[str(body.speed)]
    at = np.arange(frames, dtype=np.float64)
    if body.motion == "moves":
        return speed * at
    period = 2 * HOP_FRAMES
    going = 2 * speed * np.minimum((at + phase) % period, HOP_FRAMES)
    gone = (at + phase) // period * 2 * speed * HOP_FRAMES + going
    return gone - 2 * speed * min(phase, HOP_FRAMES)


def bounced(at: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Positions on a line folded back at both ends."""
    span = high - low
    return low + span - np.abs((at - low) % (2 * span) - span)


def path(
    body: Body, frames: int, side: int, start: tuple[float, float], phase: float
) -> NDArray[np.float64]:
    """Centres (T, 2). `start` is where it is first, for a circling object its path's centre;
    `phase` is its first angle in radians, or how many frames into a hop it is."""
    x, y = start
    if body.motion == "stays":
        return np.tile([x, y], (frames, 1)).astype(np.float64)
    if body.motion == "circles":
        turn = TURNS[str(body.heading)] * SPEEDS[str(body.speed)] / ORBIT
        angle = phase + turn * np.arange(frames)
        return np.stack([x + ORBIT * np.cos(angle), y + ORBIT * np.sin(angle)], axis=-1)
    dx, dy = DIRECTIONS[str(body.heading)]
    gone = travel(body, frames, phase)
    (left, up), (right, down) = edges(body, side)
    return np.stack(
        [bounced(x + dx * gone, left, right), bounced(y + dy * gone, up, down)], axis=-1
    )


def edges(body: Body, side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least and largest (x, y) of an object's centre: where it touches the picture's edge."""
    left, right, up, down = EXTENT[body.shape]
    r = body.radius
    return np.array([left * r, up * r]), side - np.array([right * r, down * r])


def place(
    scene: Scene, frames: int, side: int, rng: np.random.Generator, setting: Setting = CLEAR
) -> Layout:
    """Positions at random; objects without a relation keep apart where that is possible."""
    best: NDArray[np.float64] | None = None
    least = np.inf
    for _ in range(_CROSSING_TRIES if scene.relation else _TRIES):
        centres = (
            _free(scene, frames, side, rng)
            if scene.relation is None
            else _crossing(scene, frames, side, rng)
        )
        if centres is None:
            continue
        touching = 0.0 if scene.relation else _touching(scene, centres)
        if touching < least:
            best, least = centres, touching
        if least == 0:
            break
    if best is None:
        raise ValueError(f"a picture of {side} x {side} is too small for {scene}")
    shift = np.zeros((frames, 2))
    if scene.camera is not None:
        shift = -PAN * np.arange(frames)[:, None] * np.array(DIRECTIONS[scene.camera])
    return Layout(scene, side, best, _background(rng, setting), shift)


def _free(scene: Scene, frames: int, side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.stack([_one_path(body, frames, side, rng) for body in scene.bodies])


def _one_path(body: Body, frames: int, side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    low, high = edges(body, side)
    phase = float(rng.uniform(0, 2 * HOP_FRAMES))
    if body.motion == "circles":
        phase = float(rng.uniform(0, 2 * np.pi))
        low, high = low + ORBIT, high - ORBIT
    middle = (low + high) / 2  # a picture too small for the path shows its middle
    start = rng.uniform(np.minimum(low, middle), np.maximum(high, middle))
    if body.motion in ("moves", "hops"):
        dx, dy = DIRECTIONS[str(body.heading)]
        axis = 0 if dx else 1
        span = high[axis] - low[axis]
        room = min(travel(body, SURE_FRAMES, phase)[-1], 0.8 * span)
        along = float(rng.uniform(0, span - room))
        start[axis] = low[axis] + along if dx + dy > 0 else high[axis] - along
    return path(body, frames, side, (float(start[0]), float(start[1])), phase)


def _crossing(
    scene: Scene, frames: int, side: int, rng: np.random.Generator
) -> NDArray[np.float64] | None:
    """The first object's path through the second's, in the middle of the clip's first second."""
    mover, other = scene.bodies
    second = _one_path(other, frames, side, rng)
    span = min(frames, 24)
    frame = int(rng.integers(span // 3, max(span // 3 + 1, 2 * span // 3)))
    dx, dy = DIRECTIONS[str(mover.heading)]
    speed = SPEEDS[str(mover.speed)]
    offset = rng.uniform(-4, 4, 2)
    start = second[frame] + offset - np.array([dx, dy]) * speed * frame
    low, high = edges(mover, side)
    if (start < low).any() or (start > high).any():
        return None
    first = path(mover, frames, side, (float(start[0]), float(start[1])), 0.0)
    return np.stack([first, second])


def _touching(scene: Scene, centres_NT2: NDArray[np.float64]) -> float:
    """Frames in which two objects overlap, weighted by how much."""
    total = 0.0
    for i in range(len(scene.bodies)):
        for j in range(i):
            apart = np.hypot(*(centres_NT2[i] - centres_NT2[j]).T)
            reach = 1.15 * (scene.bodies[i].radius + scene.bodies[j].radius) + 1
            total += float(np.maximum(0, reach - apart).sum())
    return total


def _background(rng: np.random.Generator, setting: Setting) -> Background:
    grey = rng.uniform(0.22, 0.40)
    tint = grey + rng.uniform(-0.025, 0.025, 3)
    waves = setting.waves
    angle, length = rng.uniform(0, 2 * np.pi, waves), rng.uniform(*setting.wave_length, waves)
    wave = 2 * np.pi / length[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    height = rng.uniform(0.02, 0.05, waves)
    phase = rng.uniform(0, 2 * np.pi, waves)
    return Background(*(a.astype(np.float32) for a in (tint, wave, phase, height)))
