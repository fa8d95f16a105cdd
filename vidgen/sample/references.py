"""Reading the image or video that a condition is given."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidgen.data.read.video import BadClip, probe, read_clip
from vidgen.diffusion.conditions import given_parts
from vidgen.diffusion.config import ConditionName
from vidgen.errors import UserError
from vidgen.models.autoencoder import Autoencoder
from vidgen.runtime import ops


def read_references(
    condition: ConditionName,
    files: Sequence[str],
    ae: Autoencoder,
    size: tuple[int, int],
    device: torch.device,
) -> list[Tensor]:
    """Pixels (3, T, H, W) in [-1, 1] of each piece the condition is given, scaled and cropped.

    `files` holds one for each piece, as `check_references` returns them.
    """
    pieces = given_parts(condition, ae)
    return [
        _read(path, end, frames, size, device)
        for path, (end, frames) in zip(files, pieces, strict=True)
    ]


def check_references(condition: ConditionName, paths: Sequence[str], ae: Autoencoder) -> list[str]:
    """The file of each piece; refuses in one line a file that does not hold it.

    One file serves every piece; two files serve head and tail of a loop.
    """
    parts = given_parts(condition, ae)
    if len(paths) not in {min(1, len(parts)), len(parts)}:
        wanted = "no reference" if not parts else " or ".join(map(str, sorted({1, len(parts)})))
        raise UserError(f"condition {condition} takes {wanted} file(s); {len(paths)} were given")
    files = list(paths) * len(parts) if len(paths) == 1 else list(paths)
    for path, (_, frames) in zip(files, parts, strict=True):
        if not Path(path).exists():
            raise UserError(f"{path}: there is no such file")
        with _naming(path):
            held = probe(path).num_frames
        if held < frames:
            raise UserError(f"{path} has {held} frame(s); this condition needs {frames}")
    return files


def _read(path: str, end: str, frames: int, size: tuple[int, int], device: torch.device) -> Tensor:
    with _naming(path):
        first = 0 if end == "head" else probe(path).num_frames - frames
        pixels = read_clip(path, list(range(first, first + frames)), size=size)
    batch = torch.from_numpy(np.ascontiguousarray(pixels))[None].to(device)
    return ops.video_to_input(batch, 0.5, 0.5, torch.float32)[0]


@contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except BadClip as error:
        raise UserError(f"{path} {error}; expected an image or a video") from None
