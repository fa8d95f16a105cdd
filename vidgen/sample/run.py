"""Videos into files that say how they were made, and one summary a run."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from vidgen.data.read.video import write_image, write_video
from vidgen.diffusion.sampler import Progress, evaluations
from vidgen.diffusion.solvers import SOLVERS
from vidgen.errors import UserError
from vidgen.runtime.observe.memory import peak_memory_gb
from vidgen.runtime.observe.timer import StepTimer
from vidgen.sample.parallel import ALONE, Team
from vidgen.sample.pipeline import Pipeline
from vidgen.sample.preview import PreviewFile, Projection
from vidgen.sample.references import check_references
from vidgen.sample.request import Request


def write_samples(
    pipeline: Pipeline,
    requests: Sequence[Request],
    out: str | Path,
    *,
    crf: int = 18,
    preview: bool = False,
    team: Team = ALONE,
) -> list[Path]:
    """Generate and write every request, with a progress bar and a summary of this run beside them.

    Each video is written as it is done. Of several teams each makes its share; every rank calls
    this with the same requests and gets all the paths.
    """
    from tqdm import tqdm

    if not 0 <= crf <= 51:
        raise UserError(f"crf {crf}: expected 0 (lossless) to 51 (worst)")
    folder = make_folder(out)
    for request in requests:  # all of them, before the first takes its time
        pipeline.check(request)
        check_references(request.condition, request.ref, pipeline.autoencoder)
    paths = agreed(free_names(folder, [_suffix(r) for r in requests]))
    mine = list(zip(requests, paths, strict=True))[team.index :: team.count]

    timer = StepTimer(pipeline.device)
    with timer.phase("text"):
        features = pipeline.features([request for request, _ in mine])
    report = Summary(pipeline, paths[0] if paths else folder / "none", timer.lap())
    projection = Projection.fit(pipeline.autoencoder, pipeline.device) if preview else None
    costs = [_costs(pipeline, request) for request, _ in mine]
    total = sum(map(sum, costs))
    quiet = not team.leads or team.index != 0
    with tqdm(total=total, unit="pass", desc="sample", disable=quiet) as bar:
        for (request, path), cost in zip(mine, costs, strict=True):
            look = None
            if projection is not None and team.leads:
                look = PreviewFile(projection, path.with_suffix(".preview.png"))
            try:
                video = pipeline.video(
                    request,
                    features,
                    progress=_advance(bar, cost),
                    preview=look,
                    timer=timer,
                    team=team,
                )
                with timer.phase("write"):
                    if team.leads:
                        write_sample(
                            path, video, request, pipeline.source, pipeline.weights_hash, crf=crf
                        )
            finally:
                if look is not None:
                    look.remove()
            report.add(path, request, timer.lap())
            if not quiet:
                report.write()
    if team.count > 1 and team.leads:
        report.gather(team)
    if not quiet:
        report.write()
    return paths


class Summary:
    """What a run made and how long each part of it took, in a file of its own."""

    def __init__(self, pipeline: Pipeline, first: Path, before: dict[str, float]) -> None:
        self._pipeline = pipeline
        self.path = first.with_name(f"summary-{first.stem}.json")
        self._before = before
        self._videos: list[dict[str, Any]] = []

    def add(self, path: Path, request: Request, spent_ms: dict[str, float]) -> None:
        made = self._pipeline.branches(request, self._pipeline.check(request).tokens)
        full = self._pipeline.branches(request, self._pipeline.check(request).tokens, full=True)
        self._videos.append(
            {
                "file": path.name,
                "seconds": _seconds(spent_ms),
                # Passes of the model, and what they would be without the branch plan.
                "passes": evaluations(made, request.solver),
                "passes_unplanned": evaluations(full, request.solver),
                **asdict(request),
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
            "memory": pipeline.memory_said,
            "peak_memory_gb": round(peak_memory_gb(pipeline.device), 2),
            "seconds": _seconds(self._before),
            "videos": self._videos,
        }
        write_text(self.path, json.dumps(record, indent=1))


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
    try:
        if request.frames == 1:
            write_image(path, video_THWC[0], about)
        else:
            write_video(path, video_THWC, request.fps, crf=crf, metadata=about)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def write_text(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def make_folder(out: str | Path) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
    """What rank 0 found: the others may look when files have come already."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return paths
    told = [paths]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def _suffix(request: Request) -> str:
    return ".png" if request.frames == 1 else ".mp4"


def _costs(pipeline: Pipeline, request: Request) -> list[int]:
    """Passes of the model in each step: the bar moves evenly and its ETA holds."""
    branches = pipeline.branches(request, pipeline.check(request).tokens)
    counts = SOLVERS[request.solver].counts(len(branches))
    return [n * len(step.weights) for n, step in zip(counts, branches, strict=True)]


def _advance(bar: Any, costs: Sequence[int]) -> Progress:
    def one_step(done: int, steps: int) -> None:
        bar.update(costs[done - 1])

    return one_step


def _seconds(spent_ms: dict[str, float]) -> dict[str, float]:
    return {name: round(ms / 1000, 3) for name, ms in spent_ms.items()}
