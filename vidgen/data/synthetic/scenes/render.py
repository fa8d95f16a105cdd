"""Pixels of a layout."""

import numpy as np
from numpy.typing import NDArray

from vidgen.data.synthetic.scenes.place import Layout
from vidgen.data.synthetic.scenes.world import COLOURS, REACH, STRIPE_DARK, STRIPE_PERIOD, Body


def outline(shape: str, x: NDArray, y: NDArray, radius: float) -> NDArray:
    """Coverage in [0, 1] of points at (x, y) from the centroid; about two pixels of soft edge."""
    reach = radius * REACH[shape]
    if shape == "circle":
        inside = reach - np.hypot(x, y)
    elif shape == "square":
        inside = reach - np.maximum(np.abs(x), np.abs(y))
    else:  # triangle, base down; its height and its base are 2 * reach
        y = y + reach / 3  # from the centroid to the middle of its height
        inside = np.minimum(reach - y, (y + reach - 2 * np.abs(x)) / np.sqrt(5))
    return np.clip(inside / 2 + 0.5, 0, 1)


def stripes(y: NDArray) -> NDArray:
    """Brightness of a striped object at a distance y below its centroid."""
    wave = np.clip(1.6 * np.cos(2 * np.pi * y / STRIPE_PERIOD), -1, 1)
    return (1 + STRIPE_DARK) / 2 + (1 - STRIPE_DARK) / 2 * wave


def render(layout: Layout) -> NDArray[np.uint8]:
    """(T, side, side, 3)."""
    video = _background(layout)
    grid = np.arange(layout.side, dtype=np.float32) + 0.5
    for number in layout.order:
        body = layout.scene.bodies[number]
        for frame, (cx, cy) in enumerate(layout.centre_NT2[number]):
            reach = 2 * body.radius + 2
            rows = slice(max(0, int(cy - reach)), max(0, int(cy + reach) + 1))
            cols = slice(max(0, int(cx - reach)), max(0, int(cx + reach) + 1))
            x, y = grid[cols][None, :] - cx, grid[rows][:, None] - cy
            _paint(video[frame, rows, cols], body, x, y)
    return np.round(np.clip(video, 0, 1) * 255).astype(np.uint8)


def _paint(part_HW3: NDArray, body: Body, x: NDArray, y: NDArray) -> None:
    cover = outline(body.shape, x, y, body.radius)[..., None]
    ink = np.array(COLOURS[body.colour], dtype=np.float32) / 255
    if body.texture == "striped":
        ink = ink * stripes(y)[..., None]
    part_HW3 += cover * (ink - part_HW3)


def _background(layout: Layout) -> NDArray[np.float32]:
    found, side = layout.background, layout.side
    frames = len(layout.shift_T2)
    grid = np.arange(side, dtype=np.float32)
    grey = np.zeros((frames, side, side), dtype=np.float32)
    for (kx, ky), phase, height in zip(found.wave_W2, found.phase_W, found.height_W, strict=True):
        begin = phase - layout.shift_T2 @ np.array([kx, ky])  # (T,)
        row = (begin[:, None] + kx * grid).astype(np.float32)[:, None, :]
        column = (ky * grid)[None, :, None]
        # cos(a + b) without a cosine for every pixel
        grey += height * (np.cos(row) * np.cos(column) - np.sin(row) * np.sin(column))
    return grey[..., None] + found.tint
