"""Videos and pictures in files that record how they were made, and a summary of each run."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from vidgen.data.read.video import write_image, write_video
from vidgen.errors import UserError
from vidgen.runtime import files
from vidgen.runtime.observe.memory import peak_memory_gb
from vidgen.sample.job import Job
from vidgen.sample.parallel import Team
from vidgen.sample.pipeline import Pipeline
from vidgen.sample.request import Request


def write_sample(
    path: Path,
    video_THWC: NDArray[np.uint8],
    request: Request,
    source: str,
    weights: str = "",
    *,
    crf: int = 18,
) -> None:
    """One video or picture, whose metadata can make it again."""
    about = {
        "comment": f"{request.prompt} (seed {request.seed}, {source}, vidgen)",
        "prompt": request.prompt,
        "seed": str(request.seed),
        "recipe": source,
        "weights": weights,
        "vidgen_request": request.record(),
    }
    if request.frames == 1:
        write_image(path, video_THWC[0], about)
    else:
        write_video(path, video_THWC, request.fps, crf=crf, metadata=about)


def make_folder(out: str | Path) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot hold the videos: {error.strerror}") from None
    return folder


def free_names(folder: Path, suffixes: Sequence[str], prefix: str = "") -> list[Path]:
    """Numbers that no picture or video in the folder has, in order."""
    taken = {path.stem for path in folder.iterdir() if path.suffix in (".mp4", ".png")}
    free = (name for n in count() if (name := f"{prefix}{n:04d}") not in taken)
    return [
        folder / f"{name}{suffix}"
        for name, suffix in zip(islice(free, len(suffixes)), suffixes, strict=True)
    ]


def agreed(paths: list[Path]) -> list[Path]:
    """Rank 0's paths on every rank: others may look after files have appeared."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return paths
    agreed_paths = [paths]
    dist.broadcast_object_list(agreed_paths, src=0)
    return agreed_paths[0]


class RunSummary:
    """The videos of one run and the seconds each part of it took, in a JSON file of its own."""

    def __init__(self, pipeline: Pipeline, first: Path, before: dict[str, float]) -> None:
        self._pipeline = pipeline
        self.path = first.with_name(f"summary-{first.stem}.json")
        self._before = before
        self._videos: list[dict[str, Any]] = []

    def add(self, path: Path, job: Job, spent_ms: dict[str, float]) -> None:
        self._videos.append(
            {
                "file": path.name,
                "seconds": _seconds(spent_ms),
                # Passes of the model, and what they would be with every branch at every step
                "passes": sum(job.passes),
                "passes_unplanned": sum(job.full_passes),
                **asdict(job.request),
            }
        )

    def gather(self, team: Team) -> None:
        """The videos of all teams, in order, on every rank that leads one."""
        assert team.leaders is not None
        everyone: list[Any] = [None] * team.count
        dist.all_gather_object(everyone, self._videos, group=team.leaders)
        self._videos = sorted((v for part in everyone for v in part), key=lambda v: v["file"])

    def write(self) -> None:
        pipeline = self._pipeline
        record = {
            "source": pipeline.source,
            "weights": pipeline.weights_hash,
            "device": str(pipeline.device),
            "memory": pipeline.memory_report,
            "peak_memory_gb": round(peak_memory_gb(pipeline.device), 2),
            "seconds": _seconds(self._before),
            "videos": self._videos,
        }
        files.write_text(self.path, json.dumps(record, indent=1))


def _seconds(spent_ms: dict[str, float]) -> dict[str, float]:
    return {name: round(ms / 1000, 3) for name, ms in spent_ms.items()}
