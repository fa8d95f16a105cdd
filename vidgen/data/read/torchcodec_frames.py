"""The frames of a clip as torchcodec decodes them, in place of PyAV."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidgen.data.packages import pyav, torchcodec
from vidgen.data.read.packets import BadClip

_AT_ONCE = 8  # frames; of full size and in RGB, so many lie in memory


def frames_at(path: str | os.PathLike[str], indices: list[int]) -> Iterator[tuple[int, Any]]:
    """Frames at places in display order, in RGB and turned as they are to be shown."""
    av, codec = pyav("Reading a video"), torchcodec("Reading a video")
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise BadClip("is an empty file")
        # Exact: a frame rate does not find frames where it varies.
        decoder = codec.VideoDecoder(
            str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
        )
        frames = len(decoder)
    except (OSError, RuntimeError, ValueError) as error:
        raise BadClip(f"cannot be read: {_first_line(error)}") from error
    if frames <= indices[-1]:
        wanted = next(index for index in indices if index >= frames)
        raise BadClip(f"ends after {frames} frames; frame {wanted} was wanted")
    for first in range(0, len(indices), _AT_ONCE):
        try:
            pictures = decoder.get_frames_at(indices[first : first + _AT_ONCE]).data.numpy()
        except (RuntimeError, IndexError) as error:
            raise BadClip(f"cannot be read: {_first_line(error)}") from error
        for place, picture in enumerate(pictures, first):
            yield place, av.VideoFrame.from_ndarray(picture, format="rgb24")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
