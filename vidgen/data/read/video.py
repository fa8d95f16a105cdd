"""Reading and writing video files."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vidgen import limits
from vidgen.data.packages import pyav
from vidgen.data.read import png, torchcodec_frames
from vidgen.data.read.boundary import (
    check_frame_size,
    container_of,
    decoder_boundary,
    open_options,
    url,
)
from vidgen.data.read.packets import BadClip, decode, pick
from vidgen.data.read.scale import ToRGB, displayed_size
from vidgen.errors import UserError
from vidgen.runtime import files

Decoder = Literal["pyav", "torchcodec"]

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


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
        height, width = displayed_size(frame)
        rate = stream.average_rate if len(times) > 1 else None
        if rate is not None and not (0 < rate < math.inf):
            raise BadClip(f"has a frame rate of {float(rate):g}; expected a positive one")
        return VideoInfo(len(times), height, width, float(rate) if rate else float("nan"))


@dataclass(frozen=True)
class ClipRequest:
    """`read_clip` in a worker process: its answer is None, or why the clip is bad."""

    path: str
    frame_indices: range
    size: tuple[int, int]
    crop_at: tuple[float, float]
    flip: bool
    expect: tuple[int, int]
    decoder: Decoder = "pyav"

    def __call__(self, out: np.ndarray) -> str | None:
        shape = (len(self.frame_indices), *self.size, 3)
        try:
            read_clip(
                self.path,
                self.frame_indices,
                size=self.size,
                crop_at=self.crop_at,
                flip=self.flip,
                expect=self.expect,
                out=out.reshape(-1)[: math.prod(shape)].reshape(shape),
                decoder=self.decoder,
            )
        except BadClip as error:
            return str(error)
        return None


def read_clip(
    path: str | os.PathLike[str],
    frame_indices: Sequence[int],
    *,
    size: tuple[int, int] | None = None,
    crop_at: tuple[float, float] = (0.5, 0.5),
    flip: bool = False,
    expect: tuple[int, int] | None = None,
    out: np.ndarray | None = None,
    decoder: Decoder = "pyav",
) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 RGB at the given places in display order, which must ascend.

    `size` (H, W) scales each frame until it covers that size and cuts it, `crop_at` saying where
    on the excess (0 top or left, 1 bottom or right). `expect` is the (H, W) the file should
    display. Frames are written straight into `out` where one is given. Raises BadClip.
    """
    indices = list(frame_indices)
    if not indices or indices[0] < 0 or any(b <= a for a, b in pairwise(indices)):
        raise ValueError(f"frame indices must ascend from 0 or more; got {indices[:8]}")
    to_rgb = ToRGB(size, crop_at)
    done = set()
    frames_at = torchcodec_frames.frames_at if decoder == "torchcodec" else _frames_at
    for place, frame in frames_at(path, indices):
        with decoder_boundary():
            if frame.is_corrupt:
                raise BadClip(f"frame {indices[place]} is damaged")
            displayed = displayed_size(frame)
        if expect is not None and displayed != tuple(expect):
            raise BadClip(
                f"is {displayed[0]}x{displayed[1]} (height x width), the manifest says "
                f"{expect[0]}x{expect[1]}"
            )
        with decoder_boundary():
            picture = to_rgb(frame)
        shape = (len(indices), *(size or displayed), 3)
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8:
            raise ValueError(f"out is {out.dtype} {out.shape}; expected uint8 {shape}")
        out[place] = picture[:, ::-1] if flip else picture
        done.add(place)
    if len(done) < len(indices):
        missing = next(index for place, index in enumerate(indices) if place not in done)
        raise BadClip(f"frame {missing} cannot be decoded; {len(done)} of {len(indices)} can")
    assert out is not None
    return out


def _frames_at(path: str | os.PathLike[str], indices: list[int]) -> Iterator[tuple[int, Any]]:
    """The wanted frames with their places; fewer where some cannot be decoded."""
    found = 0
    with _opened(path, probe=False) as (container, stream):
        picked = pick(container, stream, indices)
        for place, frame in decode(stream, picked) if picked else ():
            yield place, frame
            found += 1
    if found == len(indices):
        return
    # Rare: packets without times, frames the decoder does not give back under their packet's time.
    places = {index: place for place, index in enumerate(indices)}
    with _opened(path) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number in places:
                yield places[number], frame
            if number == indices[-1]:
                return


def _frame_times(container: Any, stream: Any) -> list[int]:
    """One entry a displayed frame, in file order."""
    times = [p.pts or 0 for p in container.demux(stream) if p.size and not p.is_discard]
    if not times:
        raise BadClip("has no video frames")
    return times


@contextmanager
def _opened(path: str | os.PathLike[str], probe: bool = True) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; every failure to read becomes BadClip.

    Without `probe` FFmpeg is kept from decoding the first frame of an MP4 or MOV to find out what
    its header says already; the frames do not change.
    """
    av = pyav("Reading a video")
    path = Path(path)
    with decoder_boundary():
        kind = container_of(path)
        options = open_options(kind)
        if not probe and kind == "mov":
            options |= {"probesize": "32", "skip_frame": "all"}
        with av.open(url(path), format=kind, options=options) as container:
            stream = next((s for s in container.streams.video), None)
            if stream is None:
                raise BadClip("has no video stream")
            check_frame_size(stream.height, stream.width)
            # The loader's workers are the parallelism; codec threads would fight them.
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {
                # By the standard's rule, not by a guess, how many frames may come out of order.
                "strict": "strict",
                # The header need not say the size that the decoder finds.
                "max_pixels": str(limits.FRAME_PIXELS),
            }
            try:
                yield container, stream
            except av.FFmpegError as error:
                if stream.width:
                    raise
                # Unknown where the decoder refused it.
                raise BadClip(
                    f"cannot be decoded with frames of at most {limits.FRAME_PIXELS} pixels"
                ) from error


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
    options = {"movflags": "faststart+use_metadata_tags"}
    bt709, limited = 1, 1  # FFmpeg's numbers; small pictures left untagged are taken for BT.601
    with (
        files.replacing(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options=options) as container,
    ):
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
    whole = b"".join(bytes(packet) for packet in packets)
    files.write_bytes(path, png.with_text(whole, metadata or {}))


def written_suffix(frames: int) -> str:
    """What we write: a single frame as a picture, more as a video."""
    return ".png" if frames == 1 else ".mp4"


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """What a video or a PNG says of itself; raises BadClip."""
    path = Path(path)
    with decoder_boundary():
        if path.is_file() and container_of(path) == "png_pipe":
            with path.open("rb") as file:
                return png.read_text(file)
    with _opened(path) as (container, _):
        found = dict(container.metadata)
    if sum(len(key) + len(value) for key, value in found.items()) > limits.METADATA_BYTES:
        raise BadClip(f"says more than {limits.METADATA_BYTES} bytes of itself")
    return found
