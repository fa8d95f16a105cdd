"""What is known of a step after its backward: losses over all ranks, speed, and whose they are."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vidgen.data.loader import Batch
from vidgen.runtime.observe.mfu import Peak, hfu, mfu
from vidgen.train.supervise.loss_spikes import LossByTimestep


@dataclass(frozen=True)
class StepResult:
    """One micro-batch after its backward."""

    batch: Batch
    bin_B: Tensor
    """In [0, 1): samples whose losses are usually alike are near each other, as by timestep."""
    loss_B: Tensor
    tokens: int  # of all its clips, as are the FLOPs
    model_flops: int
    hardware_flops: int  # recompute counted
    figures: dict[str, Tensor] = field(default_factory=dict)  # more to log; 0-d


@dataclass(frozen=True)
class StepLosses:
    """Of one step, the same on every rank."""

    figures: dict[str, float]  # means over micro-batches and ranks, "loss" among them
    bin_sums: Tensor  # (3, BINS), of the samples of all ranks


def reduce_losses(results: Sequence[StepResult], world: int, data_world: int) -> StepLosses:
    """Over the step's micro-batches and all ranks, in one all-reduce."""
    loss_B = torch.cat([result.loss_B for result in results])
    sums = LossByTimestep.sums(torch.cat([result.bin_B for result in results]), loss_B)
    means = {"loss": torch.stack([result.loss_B.mean() for result in results]).mean()}
    for name in results[0].figures:
        means[name] = torch.stack([result.figures[name] for result in results]).mean()
    flat = torch.cat((torch.stack(list(means.values())).double(), sums.flatten()))
    if world > 1:
        dist.all_reduce(flat, op=dist.ReduceOp.SUM)
        flat /= world
    figures = dict(zip(means, flat.float().tolist(), strict=False))
    return StepLosses(figures, flat[len(means) :].view_as(sums) * data_world)


def throughput(
    results: Sequence[StepResult],
    phases: dict[str, float],
    peak: Peak,
    world: int,
    data_world: int,
) -> dict[str, Any]:
    """Of all ranks; `phases` are the milliseconds of the step's parts."""
    ms = sum(phases.values())
    seconds, ranks_per_sample = ms / 1000, world // data_world
    model_flops = sum(result.model_flops for result in results)
    hardware_flops = sum(result.hardware_flops for result in results)
    bucket = results[-1].batch.bucket
    return {
        "ms": ms,
        "tokens_per_s": sum(result.tokens for result in results) * data_world / seconds,
        "videos_per_s": sum(len(result.batch.keys) for result in results) * data_world / seconds,
        "mfu": mfu(model_flops, seconds, peak, ranks_per_sample),
        "hfu": hfu(hardware_flops, seconds, peak, ranks_per_sample),
        "data_ms": phases.get("data", 0.0),
        "bucket": f"{bucket.frames}x{bucket.height}x{bucket.width}",
        "phases": phases,
    }


def positions(results: Sequence[StepResult]) -> list[tuple[int, int]]:
    """(epoch, step of the epoch) of a step's batches; its micro-batches share one."""
    return sorted({(result.batch.epoch, result.batch.step_in_epoch) for result in results})


def name_bad_rows(results: Sequence[StepResult]) -> str:
    """The manifest rows whose losses are not finite."""
    rows = [row for result in results for row in result.batch.keys]
    finite = torch.cat([result.loss_B for result in results]).isfinite().tolist()
    bad = [row for row, good in zip(rows, finite, strict=True) if not good]
    where = (
        f"of manifest row(s) {_listed(bad)}"
        if bad
        else f"in a batch of manifest rows {_listed(rows)} whose losses are finite on this rank"
    )
    return f"{where}, epoch {results[-1].batch.epoch}"


def _listed(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
