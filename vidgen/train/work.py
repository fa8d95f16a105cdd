"""What one step of one rank got through: its clips and tokens, how fast, and which they were."""

import math
from typing import Any

import torch
from torch import Tensor

from vidgen.data.loader import Batch
from vidgen.models.mmdit.flops import flops
from vidgen.runtime.observe.mfu import Peak, hfu, mfu
from vidgen.train.config import Recipe
from vidgen.train.examples import Example
from vidgen.train.ranks import Ranks

Losses = list[tuple[Batch, Tensor, Tensor]]  # of each micro-step: batch, t (B,), loss (B,)


class Work:
    def __init__(self) -> None:
        self.tokens = self.videos = self.model_flops = self.executed_flops = 0
        self.bucket = ""

    def add(
        self, recipe: Recipe, batch: Batch, example: Example, text_length: int, recomputed: float
    ) -> None:
        """`recomputed` is the share of the blocks that ran again in the backward pass."""
        videos = len(batch.keys)
        one = flops(recipe.model, example.grid, text_length)
        self.videos += videos
        self.tokens += videos * math.prod(example.grid)
        self.model_flops += videos * one.training
        self.executed_flops += videos * round(one.training + recomputed * one.forward)
        self.bucket = f"{batch.bucket.frames}x{batch.bucket.height}x{batch.bucket.width}"

    def speed(self, phases: dict[str, float], ranks: Ranks, peak: Peak) -> dict[str, Any]:
        """`phases` are the ms of the step's parts."""
        ms = sum(phases.values())
        seconds = ms / 1000
        return {
            "ms": ms,
            "tokens_per_s": self.tokens * ranks.data_world / seconds,
            "videos_per_s": self.videos * ranks.data_world / seconds,
            "mfu": mfu(self.model_flops, seconds, peak, ranks.together),
            "hfu": hfu(self.executed_flops, seconds, peak, ranks.together),
            "data_ms": phases.get("data", 0.0),
            "bucket": self.bucket,
            "phases": phases,
        }


def places(losses: Losses) -> list[tuple[int, int]]:
    """Where in the data's order a step's batches stand: micro-steps share a place."""
    return sorted({(batch.epoch, batch.step_in_epoch) for batch, _, _ in losses})


def blame(losses: Losses) -> str:
    """The manifest rows whose losses are not finite."""
    rows = [row for batch, _, _ in losses for row in batch.keys]
    finite = torch.cat([loss_B for _, _, loss_B in losses]).isfinite().tolist()
    bad = [row for row, good in zip(rows, finite, strict=True) if not good]
    where = (
        f"of manifest row(s) {_some(bad)}"
        if bad
        else f"in a batch of manifest rows {_some(rows)} whose losses are finite on this rank"
    )
    return f"{where}, epoch {losses[-1][0].epoch}"


def _some(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
