"""Forward and backward of a recipe's model with random weights, its MFU, and the report's pace."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from vidgen.bench.breakdown import breakdown
from vidgen.bench.measure import Bench
from vidgen.errors import UserError
from vidgen.plan.blocks import NothingFits
from vidgen.plan.tables import report_rate
from vidgen.plan.workload import PlannedBucket, Workload, workload_of
from vidgen.recipe.schema import Recipe
from vidgen.runtime.memory.block_memory import BlockMemory
from vidgen.text_table import table


def measure(
    device: torch.device,
    dtype: torch.dtype,
    recipe: Recipe,
    names: list[str] | None,
    batch: int | None,
    repeats: int,
    tell: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """`tell` is given the result whenever it has one more row."""
    workload = workload_of(recipe)
    buckets = chosen(workload, names, batch)
    with closing(Bench(workload, device, dtype)) as bench:
        result = {"recipe": recipe.name, "peak": str(bench.peak), **_policy(workload), "rows": []}
        # On stderr: the result alone is for stdout.
        for bucket in tqdm(buckets, "buckets", unit="bucket"):
            result["rows"].append(_measured(bench, bucket, repeats))
            tell(result)
    return result


def _measured(bench: Bench, bucket: PlannedBucket, repeats: int) -> dict[str, Any]:
    """Where the batch does not fit this device, of the largest that does."""
    row: dict[str, Any] = {"bucket": bucket.name, "batch": bucket.batch}
    try:
        row |= bench.measure(bucket, repeats).row()
    except (torch.OutOfMemoryError, NothingFits):
        bench.forget()
        if largest := bench.largest_batch(bucket):
            row |= bench.measure(replace(bucket, batch=largest), repeats).row()
            row["in_place_of_batch"] = bucket.batch
        else:
            row["failed"] = "out of memory"
    report = report_rate(bucket.resolution, bucket.frames, bench.workload.context)
    row["report_videos_per_s"] = report
    row["ratio"] = row["videos_per_s"] / report if report and "ms" in row else None
    return row


def measure_parts(
    device: torch.device,
    dtype: torch.dtype,
    recipe: Recipe,
    names: list[str] | None,
    batch: int | None,
) -> dict[str, Any]:
    """Of one dual and one single block that keep everything, at the longest bucket."""
    workload = workload_of(recipe)
    longest = max(chosen(workload, names, batch), key=workload.tokens)
    two = replace(
        workload,
        model=replace(workload.model, depth=1, depth_single_blocks=1),
        blocks=(BlockMemory.KEEP,) * 2,
    )
    rows = breakdown(Bench(two, device, dtype).step(longest), device)
    return {
        "recipe": recipe.name,
        "bucket": longest.name,
        "batch": longest.batch,
        "context": workload.context,
        "rows": rows,
    }


def _policy(workload: Workload) -> dict[str, Any]:
    """How many blocks do what; "auto": each bucket's own choice."""
    blocks = workload.blocks
    kept = "auto" if blocks is None else dict(Counter(how.value for how in blocks))
    return {"context": workload.context, "blocks": kept, "compiled": workload.compiled}


def chosen(
    workload: Workload, names: Sequence[str] | None, batch: int | None
) -> list[PlannedBucket]:
    buckets = [picked(workload, name) for name in names] if names else list(workload.buckets)
    return [replace(bucket, batch=batch or bucket.batch) for bucket in buckets]


def picked(workload: Workload, name: str) -> PlannedBucket:
    """A bucket by its name; frame counts within a row's range do too, such as "256px x 9"."""
    resolution, _, frames = (part.strip() for part in name.partition(" x "))
    rows = [b for b in workload.buckets if b.resolution == resolution]
    if frames.isdigit():
        for bucket in sorted(rows, key=lambda b: b.frames):
            if int(frames) <= bucket.frames and (bucket.frames == 1) == (int(frames) == 1):
                return replace(bucket, frames=int(frames))
    known = ", ".join(f'"{bucket.name}"' for bucket in workload.buckets)
    raise UserError(f"--bucket {name!r} is none of the recipe's: {known}")


def report(result: dict[str, Any]) -> list[str]:
    head = ["bucket", "tokens", "batch", "ms", "videos/s", "TFLOP/s", "MFU", "HFU", "GB"]
    rows = [[*head, "report's videos/s", "ratio"]]
    for row in result["rows"]:
        if "failed" in row:
            rows.append([row["bucket"], "", f"{row['batch']}", row["failed"], *[""] * 7])
            continue
        rate, ratio = row["report_videos_per_s"], row["ratio"]
        rows.append(
            [
                row["bucket"],
                f"{row['tokens']}",
                f"{row['batch']}",
                f"{row['ms']:.4g}",
                f"{row['videos_per_s']:.3g}",
                f"{row['tflops']:.3g}",
                f"{row['mfu']:.1%}",
                f"{row['hfu']:.1%}",
                f"{row['memory_gb']:.1f}",
                "" if rate is None else f"{rate:.3g}",
                "" if ratio is None else f"{ratio:.2f}",
            ]
        )
    smaller = [
        f"{row['bucket']}: batch {row['in_place_of_batch']} does not fit this device, measured "
        f"with the largest that does, {row['batch']}"
        for row in result["rows"]
        if "in_place_of_batch" in row
    ]
    share = "" if result["context"] == 1 else f", one rank's part of {result['context']}"
    return [
        f"{result['recipe']}{share}, {result['device']}; peak {result['peak']}",
        *table(rows),
        *smaller,
    ]


def report_parts(result: dict[str, Any]) -> list[str]:
    rows = [["part", "ms", "share", "longest"]]
    rows += [
        [row["part"], f"{row['ms']:.3g}", f"{row['share']:.1%}", row["longest"]]
        for row in result["rows"]
    ]
    head = f"{result['recipe']}, {result['bucket']}, batch {result['batch']}, {result['device']}"
    return [head, *table(rows)]
