"""Where a validation is shown: log, TensorBoard, W&B, and report.html with the first one beside."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidgen.recipe.autoencoder import AutoencoderRecipe
from vidgen.recipe.reader import dump_yaml
from vidgen.recipe.schema import Recipe
from vidgen.runtime.observe import hardware
from vidgen.train.report.log import Kind, RunLog
from vidgen.train.report.page import VideoEntry, write_report

Video = NDArray[np.uint8]


@dataclass(frozen=True)
class Shown:
    path: Path  # a video, or the picture that one frame is
    title: str
    video_THWC: Video


@dataclass(frozen=True)
class Validation:
    kind: Kind
    figures: dict[str, float]
    shown: tuple[Shown, ...]


class ValidationPage:
    def __init__(self, recipe: Recipe | AutoencoderRecipe, rank: int) -> None:
        self._recipe, self._rank = recipe, rank
        self._first: tuple[int, Validation] | None = None

    def show(self, step: int, found: Validation, log: RunLog) -> None:
        sheets = {each.title: contact_sheet(each.video_THWC) for each in found.shown}
        files = {each.title: each.path for each in found.shown}
        log.validation(step, found.kind, found.figures, sheets, files)
        if self._rank:
            return
        self._first = self._first or (step, found)
        both = [self._first] if self._first[0] == step else [self._first, (step, found)]
        facts: dict[str, object] = {"step": step}
        if found.figures:
            facts[f"validation {found.kind.name}"] = found.kind.said(found.figures)
        write_report(
            self._recipe.run_dir,
            title=self._recipe.name,
            subtitle="Validation",
            facts=facts,
            videos=[
                VideoEntry(
                    each.path,
                    each.title,
                    tags=(f"step {at}",),
                    size=(each.video_THWC.shape[1], each.video_THWC.shape[2]),
                )
                for at, validation in both
                for each in validation.shown
                if len(each.video_THWC) > 1
            ],
            environment=hardware.versions(),
            recipe=dump_yaml(self._recipe),
        )


def contact_sheet(video_THWC: Video, most: int = 8) -> Video:
    """Frames beside each other, evenly chosen, first and last among them: (H, frames x W, C)."""
    count = min(most, len(video_THWC))
    chosen = np.linspace(0, len(video_THWC) - 1, count).round().astype(int)
    return np.concatenate([video_THWC[i] for i in chosen], axis=1)


def step_folder(run_dir: str, step: int) -> Path:
    return Path(run_dir) / "validation" / f"step-{step:09d}"
