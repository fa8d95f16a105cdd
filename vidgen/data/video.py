"""Reading and writing video files."""

import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.data import png
from vidgen.data.extras import pyav
from vidgen.errors import UserError

_COUNT_FROM_START = 64
"""Decoding this many frames costs less than indexing a whole file."""


class BadClip(Exception):
    """A file that cannot give the frames asked of it; the message is the reason, in one line."""


@dataclass(frozen=True)
class VideoInfo:
    num_frames: int
    height: int  # as displayed, after rotation
    width: int
    fps: float  # NaN for a still image


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """What a manifest row needs; counts the frames by reading the packets, decoding only one."""
    with _opened(path) as (container, stream):
        times = _frame_times(container, stream)
        container.seek(0, stream=stream, backward=True)
        frame = next(container.decode(stream), None)
        if frame is None:
            raise BadClip("no frame can be decoded")
        height, width = frame.height, frame.width
        if frame.rotation % 180:
            height, width = width, height
        rate = stream.average_rate if len(times) > 1 else None
        return VideoInfo(len(times), height, width, float(rate) if rate else float("nan"))


def read_clip(
    path: str | os.PathLike[str],
    frame_indices: Sequence[int],
    *,
    size: tuple[int, int] | None = None,
    crop_at: tuple[float, float] = (0.5, 0.5),
    flip: bool = False,
    expect: tuple[int, int] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 RGB at the given places in display order, which must ascend.

    `size` (H, W) scales each frame until it covers that size and cuts it, `crop_at` saying where
    on the excess (0 top or left, 1 bottom or right). `expect` is the (H, W) the file should
    display. Frames are written straight into `out` where one is given. Raises BadClip.
    """
    indices = list(frame_indices)
    if not indices or indices[0] < 0 or any(b <= a for a, b in pairwise(indices)):
        raise ValueError(f"frame indices must ascend from 0 or more; got {indices[:8]}")
    with _opened(path) as (container, stream):
        done = 0
        for frame in _frames_at(container, stream, indices):
            quarter_turns = round(frame.rotation / 90) % 4
            height, width = frame.height, frame.width
            if quarter_turns % 2:
                height, width = width, height
            if done == 0:
                if expect is not None and (height, width) != tuple(expect):
                    raise BadClip(
                        f"is {height}x{width} (height x width), the manifest says "
                        f"{expect[0]}x{expect[1]}"
                    )
                target = size or (height, width)
                shape = (len(indices), *target, 3)
                if out is None:
                    out = np.empty(shape, np.uint8)
                elif out.shape != shape or out.dtype != np.uint8:
                    raise ValueError(f"out is {out.dtype} {out.shape}; expected uint8 {shape}")
                to_rgb = _ToRGB()
            picture = to_rgb(frame, quarter_turns, target, crop_at)
            assert out is not None
            out[done] = picture[:, ::-1] if flip else picture
            done += 1
        if done < len(indices):
            raise BadClip(
                f"ends before frame {indices[done]}; {done} of {len(indices)} wanted read"
            )
    assert out is not None
    return out


class _ToRGB:
    """Scales and converts in one pass of swscale; the context is kept from frame to frame."""

    def __init__(self) -> None:
        av = pyav("Reading a video")
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._full_range = av.video.reformatter.ColorRange.JPEG

    def __call__(
        self, frame: Any, quarter_turns: int, size: tuple[int, int], at: tuple[float, float]
    ) -> np.ndarray:
        """A view (H, W, 3) of the converted frame, valid as long as it is referred to."""
        turned = quarter_turns % 2
        height, width = (frame.width, frame.height) if turned else (frame.height, frame.width)
        scale = max(size[0] / height, size[1] / width)
        # The side that fills exactly must not lose a pixel to rounding.
        height = max(size[0], round(height * scale))
        width = max(size[1], round(width * scale))
        rgb = self._reformatter.reformat(
            frame,
            width=height if turned else width,
            height=width if turned else height,
            format="rgb24",
            interpolation="BILINEAR",
            dst_color_range=self._full_range,
            threads=1,  # swscale's own threads would compete with the training step
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(rgb.height, plane.line_size)
        picture = rows[:, : rgb.width * 3].reshape(rgb.height, rgb.width, 3)
        if quarter_turns:
            picture = np.rot90(picture, quarter_turns)
        top = round((height - size[0]) * at[0])
        left = round((width - size[1]) * at[1])
        return picture[top : top + size[0], left : left + size[1]]


def _frames_at(container: Any, stream: Any, indices: list[int]) -> Iterator[Any]:
    """The wanted frames in order; fewer where the file ends early."""
    times = None
    if indices[0] >= _COUNT_FROM_START:
        times = _seek_before(container, stream, indices[0])
    frames = _numbered(container, stream, times)
    first = next(frames, None)
    if times is not None and (first is None or first[0] > indices[0]):
        # The container's index pointed behind the wanted frame: count up to it instead.
        container.seek(0, stream=stream, backward=True)
        frames = _numbered(container, stream, None)
        first = next(frames, None)
    if first is None:
        return
    wanted = iter(indices)
    want = next(wanted)
    for number, frame in chain([first], frames):
        if number == want:
            yield frame
            following = next(wanted, None)
            if following is None:
                return
            want = following


def _numbered(container: Any, stream: Any, times: list[int] | None) -> Iterator[tuple[int, Any]]:
    """Decoded frames with their places in display order: by time where all `times` are known."""
    for count, frame in enumerate(container.decode(stream)):
        yield (count if times is None else bisect_left(times, frame.pts)), frame


def _seek_before(container: Any, stream: Any, index: int) -> list[int] | None:
    """Go to the last key frame at or before frame `index`; the times of all frames, or None
    where frames have no times and the file must be counted through.

    The packets' own times are read: a rate does not find frames where it varies.
    """
    packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
    if len(packets) <= index:
        raise BadClip(f"has {len(packets)} frames; frame {index} was wanted")
    if any(p.pts is None for p in packets):
        container.seek(0, stream=stream, backward=True)
        return None
    times = sorted(p.pts for p in packets)
    keys = [p.pts for p in packets if p.is_keyframe and p.pts <= times[index]]
    container.seek(max(keys, default=times[0]), stream=stream, backward=True)
    return times


def _frame_times(container: Any, stream: Any) -> list[int]:
    """One entry a displayed frame, in file order."""
    times = [p.pts or 0 for p in container.demux(stream) if p.size and not p.is_discard]
    if not times:
        raise BadClip("has no video frames")
    return times


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; every failure to read becomes BadClip."""
    av = pyav("Reading a video")
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise BadClip("is an empty file")
        with av.open(str(path)) as container:
            stream = next((s for s in container.streams.video), None)
            if stream is None:
                raise BadClip("has no video stream")
            # The loader's workers are the parallelism; codec threads would fight them.
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise BadClip(f"cannot be read: {error}") from error


def write_video(
    path: str | os.PathLike[str],
    frames_THWC: np.ndarray,
    fps: float,
    crf: int = 18,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write uint8 RGB frames as H.264 in an mp4 whose metadata may have any keys.

    The file appears whole or not at all.
    """
    av = pyav("Writing a video")
    frames_THWC = np.ascontiguousarray(frames_THWC)
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3:
        raise ValueError(
            f"frames are {frames_THWC.dtype} {frames_THWC.shape}; expected uint8 (T, H, W, 3)"
        )
    count, height, width, _ = frames_THWC.shape
    if not count:
        raise ValueError("no frames to write")
    if height % 2 or width % 2:
        raise UserError(f"a video of {height}x{width} cannot be H.264; both sides must be even")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    options = {"movflags": "faststart+use_metadata_tags"}
    bt709, limited = 1, 1  # FFmpeg's numbers; small pictures left untagged are taken for BT.601
    try:
        with av.open(str(partial), "w", format="mp4", options=options) as container:
            container.metadata.update(metadata or {})
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {"crf": str(crf)}
            context = stream.codec_context
            context.thread_count = 1  # x264 starts 1.5 threads a core otherwise
            context.colorspace = context.color_primaries = context.color_trc = bt709
            context.color_range = limited
            to_yuv = av.video.reformatter.VideoReformatter()
            for picture in frames_THWC:
                rgb = av.VideoFrame.from_ndarray(picture, format="rgb24")
                yuv = to_yuv.reformat(
                    rgb,
                    format="yuv420p",
                    src_color_range="JPEG",
                    dst_colorspace="ITU709",
                    dst_color_range="MPEG",
                    threads=1,
                )
                container.mux(stream.encode(yuv))
            container.mux(stream.encode(None))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_image(
    path: str | os.PathLike[str],
    picture_HWC: np.ndarray,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write uint8 RGB as PNG with text in it; the file appears whole or not at all."""
    av = pyav("Writing an image")
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture_HWC), format="rgb24")
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width, encoder.pix_fmt = frame.height, frame.width, "rgb24"
    encoder.time_base = Fraction(1)
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        whole = b"".join(bytes(packet) for packet in packets)
        partial.write_bytes(png.with_text(whole, metadata or {}))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """What a video or a PNG says of itself; raises BadClip."""
    path = Path(path)
    if path.suffix == ".png" and path.is_file():
        return png.read_text(path.read_bytes())
    with _opened(path) as (container, _):
        return dict(container.metadata)
