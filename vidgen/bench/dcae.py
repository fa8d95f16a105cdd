"""The generator's speed-up with Video DC-AE latents: training step and sampling pass, compared with
the recipe's own latents in the same run and with the report's figures."""

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

from vidgen.bench.measure import Bench
from vidgen.bench.mfu import chosen
from vidgen.errors import UserError
from vidgen.models.mmdit.flops import flops
from vidgen.models.video_dcae.config import UNIT_PIXELS, VideoDCAEConfig
from vidgen.plan.workload import PlannedBucket, Workload, workload_of
from vidgen.recipe.schema import Recipe
from vidgen.runtime.memory.block_memory import BlockMemory
from vidgen.text_table import table

# The report's figures at 768px and 129 frames: 19k tokens against 76k.
REPORT = {("768px", 129): {"training": 5.2, "sampling": 10.0}}
OURS = "Video DC-AE"


def measure(
    device: torch.device,
    dtype: torch.dtype,
    recipe: Recipe,
    names: list[str] | None,
    batch: int | None,
    repeats: int,
    tell: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Measure the named buckets, or the one with the most tokens. A training step is one
    rank's part as the recipe divides it; a sampling pass is the whole model over one clip.
    `tell` is called with the result after each row."""
    own = workload_of(recipe)
    if own.encoders.autoencoder == "video_dcae":
        raise UserError(
            "bench dcae compares with another autoencoder's latents, but this recipe uses the "
            "Video DC-AE's: use another recipe"
        )
    buckets = chosen(own, names, batch)
    if not names:
        buckets = [max(buckets, key=own.tokens)]
    loads = {recipe.autoencoder.kind: own, OURS: with_dcae(own, buckets)}
    rows: list[dict[str, Any]] = []
    result = {"recipe": recipe.name, "context": own.context, "rows": rows}
    for latents, load in loads.items():
        figures = _figures(load, buckets, device, dtype, repeats)
        for bucket, found in zip(buckets, figures, strict=True):
            rows.append({"latents": latents, **_bucket_row(load, bucket), **found})
            tell(result)
    for before, after in zip(rows, rows[len(buckets) :], strict=False):
        after |= _speed_up(before, after)
    return result


def with_dcae(workload: Workload, buckets: list[PlannedBucket]) -> Workload:
    """The same generator with the published DC-AE's channels, one latent per token."""
    for bucket in buckets:
        if bucket.side % UNIT_PIXELS:
            raise UserError(
                f"bucket {bucket.name}: {bucket.side} pixels is not a multiple of {UNIT_PIXELS}, "
                "which the Video DC-AE needs; use another --bucket"
            )
    channels = VideoDCAEConfig().latent_channels
    return replace(
        workload,
        model=replace(workload.model, in_channels=channels, patch_size=1),
        encoders=replace(workload.encoders, autoencoder="video_dcae"),
        compression=VideoDCAEConfig().compression,
        causal=VideoDCAEConfig.causal,
    )


def _bucket_row(workload: Workload, bucket: PlannedBucket) -> dict[str, Any]:
    grid = workload.grid(bucket)
    cost = flops(workload.model, grid, workload.encoders.text_len)
    return {
        "bucket": bucket.name,
        "video_tokens": math.prod(grid),
        "text_tokens": workload.encoders.text_len,
        "batch": bucket.batch,
        "training_flops": cost.training,
        "sampling_flops": cost.forward,
    }


def _figures(
    workload: Workload,
    buckets: list[PlannedBucket],
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
) -> Iterator[dict[str, Any]]:
    every = workload.model.depth + workload.model.depth_single_blocks
    alone = replace(workload, context=1, blocks=(BlockMemory.KEEP,) * every)
    with (
        closing(Bench(workload, device, dtype)) as training,
        closing(Bench(alone, device, dtype, model=training.model)) as sampling,
    ):
        for bucket in buckets:
            row: dict[str, Any] = {}
            try:
                found = training.measure(bucket, repeats)
                row |= {
                    "training_ms": found.ms,
                    "videos_per_s": found.videos_per_s,
                    "mfu": found.mfu,
                    "memory_gb": found.memory_gb,
                }
                training.forget()
                row["sampling_ms"] = sampling.pass_ms(replace(bucket, batch=1), repeats)
            except torch.OutOfMemoryError:
                training.forget()
                row["failed"] = "out of memory"
            yield row


def _speed_up(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The speed-up, with the ratio of FLOPs and the report's figure for this bucket."""
    resolution, _, frames = before["bucket"].partition(" x ")
    report = REPORT.get((resolution, int(frames)), {})
    found: dict[str, Any] = {}
    for what in ("training", "sampling"):
        key = f"{what}_ms"
        if key in before and key in after:
            found[f"{what}_speed_up"] = before[key] / after[key]
        found[f"{what}_flops_ratio"] = before[f"{what}_flops"] / after[f"{what}_flops"]
        found[f"report_{what}_speed_up"] = report.get(what)
    return found


def report(result: dict[str, Any]) -> list[str]:
    head = ["latents", "bucket", "tokens", "batch", "training ms", "sampling pass ms"]
    rows = [[*head, "faster", "by FLOPs", "report"]]
    for row in result["rows"]:
        shown = [
            row["latents"],
            row["bucket"],
            f"{row['video_tokens']} + {row['text_tokens']}",
            f"{row['batch']}",
            row.get("failed") or f"{row['training_ms']:.4g}",
            f"{row['sampling_ms']:.4g}" if "sampling_ms" in row else "",
        ]
        rows.append(shown + [_both(row, name) for name in ("speed_up", "flops_ratio", "report")])
    share = (
        "" if result["context"] == 1 else f", one rank's part of {result['context']} in training"
    )
    return [
        f"{result['recipe']}{share}, {result['device']}; faster: training, sampling",
        *table(rows),
    ]


def _both(row: dict[str, Any], name: str) -> str:
    """The figures of training and of sampling."""
    keys = [
        f"report_{what}_speed_up" if name == "report" else f"{what}_{name}"
        for what in ("training", "sampling")
    ]
    figures = [row.get(key) for key in keys]
    return ", ".join(f"{figure:.3g}x" for figure in figures if figure is not None)
