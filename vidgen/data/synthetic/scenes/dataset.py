"""Scenes as a data set: clips, images and their manifest, a pure function of a seed."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidgen.data.index.manifest import write_manifest
from vidgen.data.read.video import write_image, write_video
from vidgen.data.synthetic.scenes.caption import caption
from vidgen.data.synthetic.scenes.draw import draw_scene
from vidgen.data.synthetic.scenes.place import Layout, place
from vidgen.data.synthetic.scenes.render import render
from vidgen.data.synthetic.scenes.world import CLEAR, Setting

FPS = 24.0
CRF = 10  # little is lost: what training compares with is the file
SHORT_CAPTIONS = 0.1  # of the clips, whose captions leave words out
PARTS = {"train": 0, "valid": 1, "held_out": 2}  # parts of the data share no clip


@dataclass(frozen=True)
class Kind:
    """Clips of one shape; frames of 1 are images."""

    side: int
    frames: int
    count: int


@dataclass(frozen=True)
class Take:
    """One clip before it is drawn."""

    layout: Layout
    caption: str

    def video(self) -> NDArray[np.uint8]:
        return render(self.layout)


def take(
    seed: int, part: str, side: int, frames: int, number: int, setting: Setting = CLEAR
) -> Take:
    """A clip depends on these values alone."""
    rng = np.random.default_rng([seed, PARTS[part], side, frames, number])
    scene = draw_scene(rng, setting=setting, held=part == "held_out")
    layout = place(scene, frames, side, rng, setting)
    short = rng if rng.random() < SHORT_CAPTIONS else None
    return Take(layout, caption(scene, moving=frames > 1, rng=short))


def motion_score(video: NDArray[np.uint8]) -> float | None:
    """Mean absolute change of brightness from frame to frame, in levels of 255."""
    if len(video) < 2:
        return None
    grey = video.astype(np.float32).mean(-1)
    return round(float(np.abs(np.diff(grey, axis=0)).mean()), 3)


def write_scenes(
    folder: str | Path,
    kinds: Sequence[Kind],
    *,
    seed: int,
    part: str = "train",
    setting: Setting = CLEAR,
    progress: Callable[[], object] | None = None,
) -> Path:
    """Write clips and `manifest.parquet`, whose path is returned; `dataset.json` has their hash."""
    folder = Path(folder)
    rows: list[dict[str, Any]] = []
    pixels = hashlib.sha256()
    for kind in kinds:
        for number in range(kind.count):
            one = take(seed, part, kind.side, kind.frames, number, setting)
            video = one.video()
            pixels.update(video.tobytes())
            name = f"{kind.side}x{kind.frames}/{number:05d}"
            if kind.frames == 1:
                name += ".png"
                write_image(folder / name, video[0])
            else:
                name += ".mp4"
                write_video(folder / name, video, FPS, crf=CRF)
            rows.append(
                {
                    "path": name,
                    "text": one.caption,
                    "num_frames": kind.frames,
                    "height": kind.side,
                    "width": kind.side,
                    "fps": FPS if kind.frames > 1 else None,
                    "motion": motion_score(video),
                }
            )
            if progress is not None:
                progress()
    manifest = folder / "manifest.parquet"
    facts = {
        "seed": seed,
        "part": part,
        "setting": setting.name,
        "kinds": [[kind.side, kind.frames, kind.count] for kind in kinds],
        "pixels_sha256": pixels.hexdigest(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(facts, indent=1))
    write_manifest(manifest, rows)  # last: where it stands, the clips do
    return manifest
