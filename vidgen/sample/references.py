"""Reading the images and videos that a condition is given."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidgen.data.read.video import BadClip, probe, read_clip
from vidgen.diffusion.conditions import DoesNotFit, Piece, pieces_of
from vidgen.diffusion.config import ConditionName
from vidgen.errors import UserError
from vidgen.models.autoencoder import Autoencoder
from vidgen.runtime import ops


@dataclass(frozen=True)
class Reference:
    """A piece of the video and the frames of a file that show it."""

    piece: Piece
    path: str
    first: int  # frame of the file


def read_references(
    references: Sequence[Reference], size: tuple[int, int], device: torch.device
) -> list[Tensor]:
    """Pixels (3, T, H, W) in [-1, 1] of each piece, scaled and cropped."""
    return [_read(one, size, device) for one in references]


def check_references(
    condition: ConditionName, paths: Sequence[str], ae: Autoencoder, frames: int
) -> list[Reference]:
    """What shows each piece of a video of so many frames; refuses in one line what does not.

    There is one file for each piece, or one for all. A piece at the video's end is the file's last
    frames. Any other is its first ones, or, of a video given for several pieces, the frames with
    the piece's own numbers.
    """
    try:
        pieces = pieces_of(condition, frames, ae)
    except DoesNotFit as error:
        raise UserError(str(error)) from None
    if len(paths) not in {min(1, len(pieces)), len(pieces)}:
        wanted = "no reference" if not pieces else " or ".join(map(str, sorted({1, len(pieces)})))
        raise UserError(f"condition {condition} takes {wanted} file(s); {len(paths)} were given")
    shared = len(paths) < len(pieces)
    files = list(paths) * len(pieces) if shared else list(paths)
    found = []
    for path, piece in zip(files, pieces, strict=True):
        if not Path(path).exists():
            raise UserError(f"{path}: there is no such file")
        with _naming(path):
            held = probe(path).num_frames
        if piece.first + piece.frames == frames:
            first = held - piece.frames
        else:
            first = piece.first if shared and held > 1 else 0
        if first < 0 or held < first + piece.frames:
            needed = piece.frames + max(first, 0)
            raise UserError(f"{path} has {held} frame(s); this condition needs {needed}")
        found.append(Reference(piece, path, first))
    return found


def _read(one: Reference, size: tuple[int, int], device: torch.device) -> Tensor:
    with _naming(one.path):
        numbers = list(range(one.first, one.first + one.piece.frames))
        pixels = read_clip(one.path, numbers, size=size)
    batch = torch.from_numpy(np.ascontiguousarray(pixels))[None].to(device)
    return ops.video_to_input(batch, 0.5, 0.5, torch.float32)[0]


@contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except BadClip as error:
        raise UserError(f"{path} {error}; expected an image or a video") from None
