"""Batch sizes by the report's three steps, over the model of memory and time."""

from collections.abc import Callable
from dataclasses import replace

from vidgen.errors import UserError
from vidgen.plan.blocks import NothingFits
from vidgen.plan.cost import Efficiency, StepTime, kept, memory, step_time
from vidgen.plan.workload import PlannedBucket, Workload
from vidgen.runtime.observe.gpus import Gpu

_LARGEST = 4096  # clips: no table goes that far, so a search that does is wrong


def search_batches(
    workload: Workload,
    gpu: Gpu,
    gpus: int,
    efficiency: Efficiency,
    longest_batch: int | None = None,
) -> Workload:
    """The workload with the batch of every bucket found anew.

    1. The bucket with the most tokens takes the largest batch that fits in memory (or
       `longest_batch`, where it is known from a real run). 2. Its times become the limits.
    3. Every other bucket takes the largest batch that fits and exceeds neither that step time,
    nor its time to encode and go forward, nor its time to go backward.
    """
    longest = max(workload.buckets, key=workload.tokens)

    def fit(bucket: PlannedBucket) -> bool:
        return fits(workload, bucket, gpu, gpus, efficiency)

    def time(bucket: PlannedBucket) -> StepTime:
        choice = kept(workload, bucket, gpu, gpus, efficiency)
        return step_time(workload, bucket, gpu, gpus, efficiency, choice)

    batch = longest_batch or _largest(fit, longest)
    limit = time(replace(longest, batch=batch))
    batches = {longest: batch}
    for bucket in workload.buckets:
        if bucket is not longest:
            batches[bucket] = _largest(lambda b: fit(b) and within(time(b), limit), bucket)
    return workload.with_batches(batches)


def fits(
    workload: Workload, bucket: PlannedBucket, gpu: Gpu, gpus: int, efficiency: Efficiency
) -> bool:
    try:
        choice = kept(workload, bucket, gpu, gpus, efficiency)
    except NothingFits:
        return False  # whatever is kept
    return memory(workload, bucket, gpu, gpus, choice).total <= gpu.memory


def within(time: StepTime, limit: StepTime) -> bool:
    return (
        time.total <= limit.total
        and time.encode + time.forward <= limit.encode + limit.forward
        and time.backward <= limit.backward
    )


def _largest(fit: Callable[[PlannedBucket], bool], bucket: PlannedBucket) -> int:
    """The largest batch that fits; what it costs grows with it, so bisection finds it."""

    def allowed(batch: int) -> bool:
        return fit(replace(bucket, batch=batch))

    if not allowed(1):
        raise UserError(
            f"bucket {bucket.name}: not even a batch of 1 fits; recompute more blocks, share a "
            "sample over more GPUs (parallel.context), or use parallel.zero=3"
        )
    low, high = 1, _LARGEST
    while low < high:
        middle = (low + high + 1) // 2
        if allowed(middle):
            low = middle
        else:
            high = middle - 1
    return low
