"""`plan`: what a training run needs and costs, before it starts."""

import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

from vidgen.errors import UserError
from vidgen.plan.batch_search import fits, search_batches
from vidgen.plan.blocks import NothingFits
from vidgen.plan.cost import (
    REPORT,
    SECONDS_PER_DAY,
    Efficiency,
    executed_flops,
    kept,
    memory,
    mfu,
    step_time,
)
from vidgen.plan.workload import PlannedBucket, Workload, workload_of
from vidgen.recipe.schema import Recipe
from vidgen.runtime.memory.block_memory import Choice
from vidgen.runtime.observe.gpus import GPUS_PER_NODE, Gpu, gpu_named


@dataclass(frozen=True)
class Keeping:
    """What blocks keep for the backward pass, and what it costs in a micro-step."""

    dual: dict[str, int]  # blocks by what they do: keep, recompute, ...
    single: dict[str, int]
    activations: float  # bytes on the device, with the block at work and those on their way
    host: float
    recompute_s: float
    copies_s: float  # of copies that outlast the computation beside them
    step_s: float
    fits: bool


@dataclass(frozen=True)
class BucketPlan:
    """One bucket. Times are of one micro-step, rates of the whole machine while it runs."""

    bucket: str
    tokens: int  # text and video of one clip
    batch: int  # clips of one data-parallel rank
    encode_s: float
    forward_s: float
    backward_s: float
    exposed_s: float
    copies_s: float
    step_s: float
    clips_per_s: float
    mfu: float
    hfu: float
    memory: float
    parts: dict[str, float]  # of that memory, bytes by what they hold
    fits: bool
    keeps: Keeping
    best: Keeping | None  # of all choices, where the recipe says another; None: nothing fits


@dataclass(frozen=True)
class TrainingPlan:
    gpu: Gpu
    gpus: int
    efficiency: Efficiency
    rows: tuple[BucketPlan, ...]
    fullest: str  # the bucket that needs the most memory
    memory: dict[str, float]  # of that bucket, bytes by part
    iteration_s: float  # wall seconds a step, at the pace of the slowest bucket
    steps: int
    days: float
    gpu_days: float
    dollars: float | None
    better_copies: int | None
    """Hybrid sharding over so many copies that takes less, where communication shows."""
    better_copies_s: float | None  # its iteration

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    recipe: Recipe | Workload,
    gpu: str | Gpu = "h200",
    gpus: int = 8,
    efficiency: Efficiency = REPORT,
    *,
    fit_batches: bool = False,
    longest_batch: int | None = None,
    dollars_per_hour: float | None = None,
) -> TrainingPlan:
    """`fit_batches` replaces the recipe's batch sizes by the largest that fit."""
    workload = recipe if isinstance(recipe, Workload) else workload_of(recipe)
    machine = gpu if isinstance(gpu, Gpu) else gpu_named(gpu)
    _check_gpus(workload, gpus)
    if fit_batches:
        workload = search_batches(workload, machine, gpus, efficiency, longest_batch)
    rows = tuple(_row(workload, b, machine, gpus, efficiency) for b in workload.buckets)
    fullest = max(rows, key=lambda row: row.memory)
    iteration = workload.accumulate * max(row.step_s for row in rows) / efficiency.goodput
    days = workload.steps * iteration / SECONDS_PER_DAY
    copies, hybrid_s = _better_copies(workload, machine, gpus, efficiency)
    price = dollars_per_hour if dollars_per_hour is not None else machine.dollars_per_hour
    return TrainingPlan(
        gpu=machine,
        gpus=gpus,
        efficiency=efficiency,
        rows=rows,
        fullest=fullest.bucket,
        memory=fullest.parts,
        iteration_s=iteration,
        steps=workload.steps,
        days=days,
        gpu_days=days * gpus,
        dollars=None if price is None else dollars(days * gpus, price),
        better_copies=copies if hybrid_s < 0.995 * iteration else None,
        better_copies_s=hybrid_s if hybrid_s < 0.995 * iteration else None,
    )


def dollars(gpu_days: float, dollars_per_hour: float) -> float:
    return gpu_days * 24 * dollars_per_hour


def _better_copies(
    workload: Workload, gpu: Gpu, gpus: int, efficiency: Efficiency
) -> tuple[int, float]:
    """Shards over whole machines, 1, 2, 4, ... of them, whose iteration is shortest among those
    in which every bucket fits; and that iteration."""
    best = workload.copies, math.inf
    shards = GPUS_PER_NODE
    while shards * workload.tensor < gpus:
        copies, left = divmod(gpus, shards * workload.tensor)
        shards *= 2
        if left:
            continue
        hybrid = replace(workload, copies=copies)
        if not all(fits(hybrid, bucket, gpu, gpus, efficiency) for bucket in hybrid.buckets):
            continue
        times = []
        for bucket in hybrid.buckets:
            choice = kept(hybrid, bucket, gpu, gpus, efficiency)
            times.append(step_time(hybrid, bucket, gpu, gpus, efficiency, choice).total)
        iteration = workload.accumulate * max(times) / efficiency.goodput
        best = min(best, (copies, iteration), key=lambda found: found[1])
    return best


def _check_gpus(workload: Workload, gpus: int) -> None:
    context, tensor, copies = workload.context, workload.tensor, workload.copies
    unit = math.lcm(context * tensor, copies * tensor)
    if gpus < 1 or gpus % unit:
        near = [n for n in (gpus // unit * unit, (gpus // unit + 1) * unit) if n > 0]
        raise UserError(
            f"{gpus} GPUs do not divide into groups of parallel.context={context}, tensor={tensor} "
            f"and copies={copies}; the nearest that do are {' and '.join(map(str, near))}"
        )


def _row(
    workload: Workload, bucket: PlannedBucket, gpu: Gpu, gpus: int, efficiency: Efficiency
) -> BucketPlan:
    choice = kept(workload, bucket, gpu, gpus, efficiency)
    time = step_time(workload, bucket, gpu, gpus, efficiency, choice)
    needed = memory(workload, bucket, gpu, gpus, choice)
    group = workload.context * workload.tensor
    encode, *model_flops = executed_flops(workload, bucket, choice.blocks)
    executed = bucket.batch * (encode / workload.context + sum(model_flops) / group)
    return BucketPlan(
        bucket=bucket.name,
        tokens=workload.tokens(bucket),
        batch=bucket.batch,
        encode_s=time.encode,
        forward_s=time.forward,
        backward_s=time.backward,
        exposed_s=time.exposed,
        copies_s=time.copies,
        step_s=time.total,
        clips_per_s=bucket.batch * gpus / group / time.total,
        mfu=mfu(workload, bucket, gpu, time.total),
        hfu=executed / time.total / gpu.flops,
        memory=needed.total,
        parts=asdict(needed),
        fits=needed.total <= gpu.memory,
        keeps=_keeping(workload, bucket, gpu, gpus, efficiency, choice),
        best=_best(workload, bucket, gpu, gpus, efficiency),
    )


def _best(
    workload: Workload, bucket: PlannedBucket, gpu: Gpu, gpus: int, efficiency: Efficiency
) -> Keeping | None:
    open_choice = replace(workload, blocks=None)
    try:
        choice = kept(open_choice, bucket, gpu, gpus, efficiency)
    except NothingFits:
        return None
    return _keeping(open_choice, bucket, gpu, gpus, efficiency, choice)


def _keeping(
    workload: Workload,
    bucket: PlannedBucket,
    gpu: Gpu,
    gpus: int,
    efficiency: Efficiency,
    choice: Choice,
) -> Keeping:
    names = [how.value for how in choice.blocks]
    needed = memory(workload, bucket, gpu, gpus, choice)
    return Keeping(
        dual=dict(Counter(names[: workload.model.depth])),
        single=dict(Counter(names[workload.model.depth :])),
        activations=needed.activations,
        host=choice.host_bytes,
        recompute_s=choice.again_s,
        copies_s=choice.late_s,
        step_s=step_time(workload, bucket, gpu, gpus, efficiency, choice).total,
        fits=needed.total <= gpu.memory,
    )
