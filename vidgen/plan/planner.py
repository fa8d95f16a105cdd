"""`plan`: what a training run needs and costs, before it starts."""

from dataclasses import asdict, dataclass
from typing import Any

from vidgen.errors import UserError
from vidgen.plan.batch_search import fits, search_batches
from vidgen.plan.cost import (
    REPORT,
    SECONDS_PER_DAY,
    Efficiency,
    executed_flops,
    memory,
    mfu,
    step_time,
)
from vidgen.plan.hardware import Gpu, gpu_named
from vidgen.plan.workload import Bucket, Workload, workload_of


@dataclass(frozen=True)
class Row:
    """One bucket. Times are of one micro-step, rates of the whole machine while it runs."""

    bucket: str
    tokens: int  # text and video of one clip
    batch: int  # clips of one data-parallel rank
    encode_s: float
    forward_s: float
    backward_s: float
    exposed_s: float
    step_s: float
    clips_per_s: float
    mfu: float
    hfu: float
    memory: float
    fits: bool


@dataclass(frozen=True)
class Plan:
    gpu: Gpu
    gpus: int
    efficiency: Efficiency
    rows: tuple[Row, ...]
    fullest: str  # the bucket that needs the most memory
    memory: dict[str, float]  # of that bucket, bytes by part
    iteration_s: float  # wall seconds a step, at the pace of the slowest bucket
    steps: int
    days: float
    gpu_days: float
    dollars: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    recipe: Any,
    gpu: str | Gpu = "h200",
    gpus: int = 8,
    efficiency: Efficiency = REPORT,
    *,
    fit_batches: bool = False,
    longest_batch: int | None = None,
    dollars_per_hour: float | None = None,
) -> Plan:
    """`recipe` is a training recipe or a Workload; `fit_batches` finds every batch size anew."""
    workload = recipe if isinstance(recipe, Workload) else workload_of(recipe)
    machine = gpu if isinstance(gpu, Gpu) else gpu_named(gpu)
    if gpus < 1 or gpus % workload.context:
        raise UserError(
            f"{gpus} GPUs do not divide into groups of parallel.context={workload.context}; "
            f"the next that do are {(gpus // workload.context + 1) * workload.context}"
        )
    if fit_batches:
        workload = search_batches(workload, machine, gpus, efficiency, longest_batch)
    rows = tuple(_row(workload, b, machine, gpus, efficiency) for b in workload.buckets)
    fullest = max(workload.buckets, key=lambda b: memory(workload, b, machine, gpus).total)
    iteration = workload.accumulate * max(row.step_s for row in rows) / efficiency.goodput
    days = workload.steps * iteration / SECONDS_PER_DAY
    price = dollars_per_hour if dollars_per_hour is not None else machine.dollars_per_hour
    return Plan(
        gpu=machine,
        gpus=gpus,
        efficiency=efficiency,
        rows=rows,
        fullest=fullest.name,
        memory=asdict(memory(workload, fullest, machine, gpus)),
        iteration_s=iteration,
        steps=workload.steps,
        days=days,
        gpu_days=days * gpus,
        dollars=None if price is None else dollars(days * gpus, price),
    )


def dollars(gpu_days: float, dollars_per_hour: float) -> float:
    return gpu_days * 24 * dollars_per_hour


def _row(workload: Workload, bucket: Bucket, gpu: Gpu, gpus: int, efficiency: Efficiency) -> Row:
    time = step_time(workload, bucket, gpu, gpus, efficiency)
    executed = sum(executed_flops(workload, bucket)) * bucket.batch / workload.context
    return Row(
        bucket=bucket.name,
        tokens=workload.tokens(bucket),
        batch=bucket.batch,
        encode_s=time.encode,
        forward_s=time.forward,
        backward_s=time.backward,
        exposed_s=time.exposed,
        step_s=time.total,
        clips_per_s=bucket.batch * gpus / workload.context / time.total,
        mfu=mfu(workload, bucket, gpu, time.total),
        hfu=executed / time.total / gpu.flops,
        memory=memory(workload, bucket, gpu, gpus).total,
        fits=fits(workload, bucket, gpu, gpus),
    )
