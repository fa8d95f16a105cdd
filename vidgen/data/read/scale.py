"""A decoded frame to RGB of another size: cut, scaled and converted in one pass of FFmpeg's."""

from fractions import Fraction
from typing import Any

import numpy as np

from vidgen.data.packages import pyav

_FULL_RANGE = 2  # FFmpeg's number


class ToRGB:
    """Scales frames until they cover `size` (H, W) and cuts them to it, `crop_at` saying where on
    the excess (0 top or left, 1 bottom or right), both as displayed. The frames of one clip are
    alike, so what they need is set up once."""

    def __init__(self, size: tuple[int, int] | None, crop_at: tuple[float, float]) -> None:
        self._size, self._crop_at = size, crop_at
        self._made_for: tuple[Any, ...] | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        """A view (H, W, 3) of the converted frame, valid as long as it is referred to."""
        kind = (
            frame.width,
            frame.height,
            frame.format.name,
            frame.colorspace,
            frame.color_range,
            frame.rotation,
        )
        if kind != self._made_for:
            self._make(frame)
            self._made_for = kind
        self._graph.vpush(frame)
        rgb = self._graph.vpull()
        plane = rgb.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(rgb.height, plane.line_size)
        picture = rows[:, : rgb.width * 3].reshape(rgb.height, rgb.width, 3)
        return np.rot90(picture, self._quarter_turns) if self._quarter_turns else picture

    def _make(self, frame: Any) -> None:
        self._quarter_turns = round(frame.rotation / 90) % 4
        size = self._size or displayed_size(frame)
        top, left = self._crop_at
        # The window in the stored picture, which is displayed turned counter-clockwise.
        top, left = ((top, left), (left, 1 - top), (1 - top, 1 - left), (1 - left, top))[
            self._quarter_turns
        ]
        height, width = size[::-1] if self._quarter_turns % 2 else size
        scale = max(height / frame.height, width / frame.width)
        rows, first_row = _cut(frame.height, height / scale, top)
        columns, first_column = _cut(frame.width, width / scale, left)
        av = pyav("Reading a video")
        graph = av.filter.Graph()
        graph.threads = 1  # the loader's workers are the parallelism
        source = graph.add(
            "buffer",
            width=str(frame.width),
            height=str(frame.height),
            pix_fmt=frame.format.name,
            time_base=str(Fraction(1)),
            colorspace=str(int(frame.colorspace)),
            range=str(_range(frame)),
        )
        chain = [source]
        if (rows, columns) != (frame.height, frame.width):
            where = f"{columns}:{rows}:{first_column}:{first_row}"
            chain.append(graph.add("crop", where))
        chain.append(graph.add("scale", f"{width}:{height}:flags=bilinear:out_range=full"))
        chain += [graph.add("format", "rgb24"), graph.add("buffersink")]
        graph.link_nodes(*chain)
        graph.configure()
        self._graph = graph


def displayed_size(frame: Any) -> tuple[int, int]:
    """(height, width) after rotation."""
    turned = round(frame.rotation / 90) % 2
    return (frame.width, frame.height) if turned else (frame.height, frame.width)


def _cut(side: int, wanted: float, at: float) -> tuple[int, int]:
    """Pixels of a side to keep and the first of them, even: chroma comes in pairs."""
    keep = 2 * max(1, round(wanted / 2))
    if keep >= side - 1:
        return side, 0
    return keep, 2 * round((side - keep) * at / 2)


def _range(frame: Any) -> int:
    """yuvj formats are full by their name."""
    return _FULL_RANGE if frame.format.name.startswith("yuvj") else int(frame.color_range)
