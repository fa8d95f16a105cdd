"""The boundary to the decoder: which files it is given, and what its failures become.

Files of clips come from outside. Only known containers are opened, by their content and not by
their name, and no demuxer may open a second file.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vidgen import limits
from vidgen.data.read.packets import BadClip
from vidgen.errors import UserError
from vidgen.printable import one_line

CONTAINERS = "MP4, MOV, Matroska, WebM, AVI, MPEG-TS, PNG, JPEG or WebP"
_QUICKTIME = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_PACKET = 188  # bytes of MPEG-TS, each beginning with the same one
_REASON = 200  # characters


@contextmanager
def decoder_boundary() -> Iterator[None]:
    """Any failure inside becomes BadClip: on damaged files PyAV and FFmpeg's bindings raise many
    types beside their own (AttributeError, UnicodeDecodeError, ValueError, MemoryError)."""
    try:
        yield
    except (BadClip, UserError):
        raise
    except MemoryError as error:
        raise BadClip("needs more memory than a clip may take") from error
    except Exception as error:
        raise BadClip(f"cannot be read: {_reason(error)}") from error


def container_of(path: Path) -> str:
    """FFmpeg's name of the demuxer for a file, by its first bytes; refuses unknown ones."""
    with path.open("rb") as file:
        head = file.read(2 * _PACKET + 1)
    if not head:
        raise BadClip("is an empty file")
    if head[4:8] in _QUICKTIME:
        return "mov"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] in (b"AVI ", b"WEBP"):
        return "avi" if head[8:12] == b"AVI " else "webp_pipe"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png_pipe"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg_pipe"
    if head[:1] == b"G" and head[_PACKET : _PACKET + 1] == b"G":
        return "mpegts"
    raise BadClip(f"is none of the containers that are read: {CONTAINERS}")


def open_options(container: str) -> dict[str, str]:
    """The file alone may be read, as this container alone, with frames of limited size."""
    return {
        "protocol_whitelist": "file",
        "format_whitelist": container,
        "max_pixels": str(limits.FRAME_PIXELS),
    }


def url(path: Path) -> str:
    """A name that FFmpeg takes for a file whatever characters are in it."""
    return "file:" + os.path.abspath(path)


def check_frame_size(height: int, width: int) -> None:
    if height * width > limits.FRAME_PIXELS:
        raise BadClip(
            f"has frames of {height}x{width} pixels; at most {limits.FRAME_PIXELS} pixels are read"
        )


def _reason(error: Exception) -> str:
    text = str(getattr(error, "strerror", None) or error)
    first = (text.strip().splitlines() or [""])[0]
    return one_line(first or type(error).__name__)[:_REASON]
