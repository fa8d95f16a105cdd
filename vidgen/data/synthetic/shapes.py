"""Synthetic clips: one coloured shape moving in one direction, with a caption that says so."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidgen.data.index.manifest import write_manifest
from vidgen.data.read.video import write_video

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

# Never shown in training, though each of their words is: whoever draws them has understood.
HELD_OUT = tuple(scene for i, scene in enumerate(SCENES) if (i // 12 + i // 4 % 3 + i % 4) % 6 == 0)
TRAINED = tuple(scene for scene in SCENES if scene not in HELD_OUT)


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
    radius = rng.uniform(0.235, 0.245) * side
    travel = rng.uniform(0.40, 0.46) * side
    dx, dy = DIRECTIONS[scene.direction]
    along = rng.uniform(-0.02, 0.02) * side
    across = rng.uniform(-0.04, 0.04) * side
    path = np.linspace(-0.5, 0.5, frames) * travel
    centre_x = side / 2 + along * abs(dx) + across * abs(dy) + dx * path
    centre_y = side / 2 + along * abs(dy) + across * abs(dx) + dy * path
    grid = np.arange(side) + 0.5
    x = grid[None, None, :] - centre_x[:, None, None]
    y = grid[None, :, None] - centre_y[:, None, None]
    coverage = outline(scene.shape, x, y, radius)[..., None]
    ink, paper = np.array(COLOURS[scene.colour]), np.array(BACKGROUND)
    return np.round(coverage * ink + (1 - coverage) * paper).astype(np.uint8)


def write_dataset(
    folder: str | Path,
    *,
    scenes: Sequence[Scene] = TRAINED,
    clips: Sequence[tuple[int, int]] = ((17, 12), (33, 5)),
    side: int = 64,
    fps: float = 24.0,
    seed: int = 0,
    progress: Callable[[], object] | None = None,
) -> Path:
    """Write mp4s and their manifest; returns the manifest.

    `clips` says how many clips of how many frames each scene gets: (frames, clips). A clip depends
    on the seed, its scene, length and number alone.
    """
    folder = Path(folder)
    rows = []
    for scene in scenes:
        for frames, count in clips:
            for number in range(count):
                key = [seed, SCENES.index(scene), frames, number]
                name = f"{scene.colour}_{scene.shape}_{scene.direction}_{frames}_{number}.mp4"
                video = render(scene, frames, side, np.random.default_rng(key))
                write_video(folder / name, video, fps)
                rows.append(
                    {
                        "path": name,
                        "text": scene.caption,
                        "num_frames": frames,
                        "height": side,
                        "width": side,
                        "fps": fps,
                    }
                )
                if progress is not None:
                    progress()
    manifest = folder / "manifest.parquet"
    write_manifest(manifest, rows)  # last: where it stands, the clips do
    return manifest
