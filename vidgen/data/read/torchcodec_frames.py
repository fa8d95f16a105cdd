"""The frames of a clip as torchcodec decodes them, in place of PyAV."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidgen.data.packages import pyav, torchcodec
from vidgen.data.read.boundary import check_frame_size, container_of, decoder_boundary, url
from vidgen.data.read.packets import BadClip

_AT_ONCE = 8  # frames; of full size and in RGB, that many are in memory


def frames_at(path: str | os.PathLike[str], indices: list[int]) -> Iterator[tuple[int, Any]]:
    """Frames at places in display order, in RGB and turned as they are to be shown."""
    av, codec = pyav("Reading a video"), torchcodec("Reading a video")
    path = Path(path)
    with decoder_boundary():
        container_of(path)
        # Exact: a frame rate does not find frames where it varies.
        decoder = codec.VideoDecoder(
            url(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
        )
        check_frame_size(decoder.metadata.height or 0, decoder.metadata.width or 0)
        frames = len(decoder)
    if frames <= indices[-1]:
        wanted = next(index for index in indices if index >= frames)
        raise BadClip(f"ends after {frames} frames; frame {wanted} was wanted")
    for first in range(0, len(indices), _AT_ONCE):
        with decoder_boundary():
            pictures = decoder.get_frames_at(indices[first : first + _AT_ONCE]).data.numpy()
        for place, picture in enumerate(pictures, first):
            yield place, av.VideoFrame.from_ndarray(picture, format="rgb24")
