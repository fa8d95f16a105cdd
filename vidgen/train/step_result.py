"""What one step of one rank got through: its clips and tokens, how fast, and which they were."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidgen.data.loader import Batch
from vidgen.runtime.observe.mfu import Peak, hfu, mfu


@dataclass(frozen=True)
class Learned:
    """What is known of one batch after its backward."""

    batch: Batch
    bin_B: Tensor
    """In [0, 1): samples whose losses are usually alike are near each other, as by timestep."""
    loss_B: Tensor
    tokens: int  # of all its clips, as are the FLOPs
    model_flops: int
    executed_flops: int
    figures: dict[str, Tensor] = field(default_factory=dict)  # more to log; 0-d


def speed(
    learned: Sequence[Learned],
    phases: dict[str, float],
    peak: Peak,
    world: int,
    data_world: int,
) -> dict[str, Any]:
    """Of all ranks; `phases` are the ms of the step's parts."""
    ms = sum(phases.values())
    seconds, together = ms / 1000, world // data_world
    model_flops, executed_flops = (
        sum(each.model_flops for each in learned),
        sum(each.executed_flops for each in learned),
    )
    bucket = learned[-1].batch.bucket
    return {
        "ms": ms,
        "tokens_per_s": sum(each.tokens for each in learned) * data_world / seconds,
        "videos_per_s": sum(len(each.batch.keys) for each in learned) * data_world / seconds,
        "mfu": mfu(model_flops, seconds, peak, together),
        "hfu": hfu(executed_flops, seconds, peak, together),
        "data_ms": phases.get("data", 0.0),
        "bucket": f"{bucket.frames}x{bucket.height}x{bucket.width}",
        "phases": phases,
    }


def places(learned: Sequence[Learned]) -> list[tuple[int, int]]:
    """Where in the data's order a step's batches stand: micro-steps share a place."""
    return sorted({(each.batch.epoch, each.batch.step_in_epoch) for each in learned})


def blame(learned: Sequence[Learned]) -> str:
    """The manifest rows whose losses are not finite."""
    rows = [row for each in learned for row in each.batch.keys]
    finite = torch.cat([each.loss_B for each in learned]).isfinite().tolist()
    bad = [row for row, good in zip(rows, finite, strict=True) if not good]
    where = (
        f"of manifest row(s) {_some(bad)}"
        if bad
        else f"in a batch of manifest rows {_some(rows)} whose losses are finite on this rank"
    )
    return f"{where}, epoch {learned[-1].batch.epoch}"


def _some(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
