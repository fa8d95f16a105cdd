"""Synthetic clips: one coloured shape moving in one direction, with a caption that says so."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 235),
    "yellow": (235, 215, 40),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x, y; y grows down
BACKGROUND = (32, 32, 36)


@dataclass(frozen=True)
class Scene:
    colour: str
    shape: str
    direction: str

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape} moving {self.direction}"


SCENES = tuple(Scene(c, s, d) for c in COLOURS for s in SHAPES for d in DIRECTIONS)


def outline(shape: str, x: NDArray, y: NDArray, radius: NDArray | float) -> NDArray:
    """Coverage in [0, 1] of points at (x, y) from the centre; about one pixel of soft edge."""
    if shape == "circle":
        inside = radius - np.hypot(x, y)
    elif shape == "square":
        inside = radius - np.maximum(np.abs(x), np.abs(y))
    else:  # triangle, base down: height and base are the diameter
        inside = np.minimum(radius - y, (y + radius - 2 * np.abs(x)) / np.sqrt(5))
    return np.clip(inside + 0.5, 0, 1)


def render(scene: Scene, frames: int, side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(frames, side, side, 3): position, size and speed vary with `rng`."""
    radius = rng.uniform(0.18, 0.21) * side
    travel = rng.uniform(0.42, 0.50) * side
    dx, dy = DIRECTIONS[scene.direction]
    room = side / 2 - radius - 1
    along = rng.uniform(-1, 1) * (room - travel / 2)
    across = rng.uniform(-1, 1) * room * 0.6
    path = np.linspace(-0.5, 0.5, frames) * travel
    centre_x = side / 2 + along * abs(dx) + across * abs(dy) + dx * path
    centre_y = side / 2 + along * abs(dy) + across * abs(dx) + dy * path
    grid = np.arange(side) + 0.5
    x = grid[None, None, :] - centre_x[:, None, None]
    y = grid[None, :, None] - centre_y[:, None, None]
    coverage = outline(scene.shape, x, y, radius)[..., None]
    ink, paper = np.array(COLOURS[scene.colour]), np.array(BACKGROUND)
    return np.round(coverage * ink + (1 - coverage) * paper).astype(np.uint8)
