"""Forward and backward of a recipe's model with random weights, and its MFU."""

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from vidgen.cli.text import table
from vidgen.errors import UserError
from vidgen.models.mmdit.flops import flops
from vidgen.models.mmdit.model import MMDiT, Seams, call_block
from vidgen.plan.cost import executed_flops
from vidgen.plan.workload import Bucket, Workload, workload_of
from vidgen.runtime.observe.memory import peak_memory_gb
from vidgen.runtime.observe.mfu import hfu, mfu, peak


@dataclass(frozen=True)
class Row:
    bucket: str
    tokens: int
    batch: int
    ms: float
    clips_per_s: float
    tflops_per_s: float
    mfu: float
    hfu: float
    memory_gb: float


def measure(
    device: torch.device,
    dtype: torch.dtype,
    recipe: Any,
    names: list[str] | None,
    batch: int | None,
    repeats: int,
) -> dict[str, Any]:
    workload = replace(workload_of(recipe), context=1)  # one device, so a whole sample
    buckets = [picked(workload, name) for name in names] if names else list(workload.buckets)
    if batch is not None:
        buckets = [replace(bucket, batch=batch) for bucket in buckets]
    ceiling = peak(device, dtype)
    with torch.device(device):
        model = MMDiT(workload.model).to(dtype)
    rows = [run_bucket(model, workload, bucket, device, dtype, repeats) for bucket in buckets]
    return {
        "recipe": recipe.name,
        "peak": str(ceiling),
        "recompute": {"dual": workload.recompute_dual, "single": workload.recompute_single},
        "rows": [asdict(row) for row in rows],
    }


def picked(workload: Workload, name: str) -> Bucket:
    """A bucket by its name; frame counts within a row's range do too, such as "256px x 9"."""
    resolution, _, frames = (part.strip() for part in name.partition(" x "))
    rows = [b for b in workload.buckets if b.resolution == resolution]
    if frames.isdigit():
        for bucket in sorted(rows, key=lambda b: b.frames):
            if int(frames) <= bucket.frames and (bucket.frames == 1) == (int(frames) == 1):
                return replace(bucket, frames=int(frames))
    known = ", ".join(f'"{bucket.name}"' for bucket in workload.buckets)
    raise UserError(f"--bucket {name!r} is none of the recipe's: {known}")


def run_bucket(
    model: MMDiT,
    workload: Workload,
    bucket: Bucket,
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
) -> Row:
    config, grid = workload.model, workload.grid(bucket)
    text, batch, video = workload.encoders.text_len, bucket.batch, math.prod(workload.grid(bucket))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    inputs: dict[str, Any] = {
        "grid": grid,
        "txt": random(batch, text, config.context_in_dim),
        "vec": random(batch, config.vec_in_dim),
        "t": torch.rand(batch, device=device),
        "seams": Seams(run_block=recomputing(workload)),
    }
    if config.cond_embed:
        inputs["cond"] = random(batch, video, config.cond_channels)
    if config.guidance_embed:
        inputs["guidance"] = torch.rand(batch, device=device)
    x = random(batch, video, config.in_channels)

    def step() -> float:
        settle(device)
        start = time.perf_counter()
        model(x, **inputs).float().square().mean().backward()
        settle(device)
        seconds = time.perf_counter() - start
        model.zero_grad(set_to_none=False)
        return seconds

    step()  # warms up: allocations, kernel choices
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = min(step() for _ in range(repeats))
    needed = flops(config, grid, text).training * batch
    _, forward, backward = executed_flops(workload, bucket)
    ceiling = peak(device, dtype)
    return Row(
        bucket=bucket.name,
        tokens=workload.tokens(bucket),
        batch=batch,
        ms=seconds * 1e3,
        clips_per_s=batch / seconds,
        tflops_per_s=needed / seconds / 1e12,
        mfu=mfu(needed, seconds, ceiling),
        hfu=hfu((forward + backward) * batch, seconds, ceiling),
        memory_gb=peak_memory_gb(device),
    )


def recomputing(workload: Workload) -> Any:
    """The recipe's memory policy: the first blocks of each kind run again in the backward pass."""
    dual = workload.model.depth
    again = {*range(workload.recompute_dual)}
    again |= {dual + i for i in range(workload.recompute_single)}

    def run_block(index: int, block: Any, stream: Any, context: Any) -> Any:
        if index not in again:
            return call_block(index, block, stream, context)
        return checkpoint(call_block, index, block, stream, context, use_reentrant=False)

    return run_block


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(result: dict[str, Any]) -> list[str]:
    rows = [["bucket", "tokens", "batch", "ms", "clips/s", "TFLOP/s", "MFU", "HFU", "GB"]]
    rows += [
        [
            row["bucket"],
            f"{row['tokens']}",
            f"{row['batch']}",
            f"{row['ms']:.4g}",
            f"{row['clips_per_s']:.3g}",
            f"{row['tflops_per_s']:.3g}",
            f"{row['mfu']:.1%}",
            f"{row['hfu']:.1%}",
            f"{row['memory_gb']:.1f}",
        ]
        for row in result["rows"]
    ]
    return [f"{result['recipe']}, {result['device']}; peak {result['peak']}", *table(rows)]
