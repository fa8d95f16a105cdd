"""Where a validation is shown: log, TensorBoard, W&B, and report.html with the first one beside."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidgen.page.videos import Comparison
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
        facts: dict[str, object] = {"step": step}
        if found.figures:
            facts[f"validation {found.kind.name}"] = found.kind.summarise(found.figures)
        at_first, first = self._first
        newest = {each.title: each for each in found.shown}
        pairs = [] if at_first == step else [x for x in first.shown if x.title in newest]
        compared = [
            Comparison(x.title, [_entry(x, at_first).card(), _entry(newest[x.title], step).card()])
            for x in pairs
            if _moves(x)
        ]
        apart = {x.title for x in pairs}
        write_report(
            self._recipe.run_dir,
            title=self._recipe.name,
            subtitle="Validation",
            facts=facts,
            videos=[_entry(x, step) for x in found.shown if _moves(x) and x.title not in apart],
            compared=compared,
            environment=hardware.versions(),
            recipe=dump_yaml(self._recipe),
        )


def _entry(shown: Shown, step: int) -> VideoEntry:
    size = shown.video_THWC.shape[1:3]
    return VideoEntry(shown.path, shown.title, tags=(f"step {step}",), size=(size[0], size[1]))


def _moves(shown: Shown) -> bool:
    return len(shown.video_THWC) > 1


def contact_sheet(video_THWC: Video, most: int = 8) -> Video:
    """Frames beside each other, evenly chosen, first and last among them: (H, frames x W, C)."""
    count = min(most, len(video_THWC))
    chosen = np.linspace(0, len(video_THWC) - 1, count).round().astype(int)
    return np.concatenate([video_THWC[i] for i in chosen], axis=1)


def step_folder(run_dir: str, step: int) -> Path:
    return Path(run_dir) / "validation" / f"step-{step:09d}"
