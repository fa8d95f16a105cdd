"""Small H.264 clips whose every frame says which one it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidgen.data.index.manifest import write_manifest
from vidgen.data.read.video import write_video


def numbered_frames(count: int, height: int = 32, width: int = 32, clip: int = 0) -> np.ndarray:
    """Frame t of clip c is grey at level t, with its left half at level c: read by `number`."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[...] = (20 + 6 * (np.arange(count) % 37))[:, None, None, None]
    frames[:, :, : width // 2] = 20 + 6 * (clip % 37)
    return frames


@dataclass(frozen=True)
class ClipSet:
    manifest: Path
    rows: list[dict[str, Any]]


@pytest.fixture(scope="session")
def clip_set(tmp_path_factory: pytest.TempPathFactory) -> ClipSet:
    """30 clips of 17 or 33 frames at 32x32, two of 48x32, one image-like clip of one frame."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    shapes = [(17 + 16 * (i % 2), 32, 32) for i in range(30)] + [(17, 48, 32)] * 2 + [(1, 32, 32)]
    for i, (frames, height, width) in enumerate(shapes):
        write_video(folder / f"{i}.mp4", numbered_frames(frames, height, width, i), fps=24)
        rows.append(
            {
                "path": f"{i}.mp4",
                "text": f"clip {i}",
                "num_frames": frames,
                "height": height,
                "width": width,
                "fps": 24.0,
                "motion": None if i == 0 else i / 2,
            }
        )
    write_manifest(folder / "clips.parquet", rows)
    return ClipSet(folder / "clips.parquet", rows)


@pytest.fixture
def make_manifest(tmp_path: Path) -> Callable[[Sequence[dict[str, Any]]], Path]:
    """Write a manifest of rows given in part; its files are empty unless made by the test."""

    def make(rows: Sequence[dict[str, Any]]) -> Path:
        whole = []
        for i, row in enumerate(rows):
            row = {
                "path": f"{i}.mp4",
                "text": f"clip {i}",
                "num_frames": 17,
                "height": 32,
                "width": 32,
                "fps": 24.0,
            } | dict(row)
            (tmp_path / row["path"]).touch()
            whole.append(row)
        write_manifest(tmp_path / "made.parquet", whole)
        return tmp_path / "made.parquet"

    return make
