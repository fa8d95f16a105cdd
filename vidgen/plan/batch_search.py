"""Searches batch sizes with the report's three steps, using the model of memory and time."""

from collections.abc import Callable
from dataclasses import replace

from vidgen.errors import UserError
from vidgen.plan.blocks import NothingFits
from vidgen.plan.cost import Efficiency, StepTime, kept, memory, step_time
from vidgen.plan.workload import PlannedBucket, Workload
from vidgen.runtime.observe.gpus import Gpu

_LARGEST = 4096  # clips: a search that reaches this has failed


def search_batches(
    workload: Workload,
    gpu: Gpu,
    gpus: int,
    efficiency: Efficiency,
    longest_batch: int | None = None,
) -> Workload:
    """The workload with a new batch size for every bucket.

    1. The bucket with the most tokens takes the largest batch that fits in memory (or
       `longest_batch`, if known from a real run). 2. Its times become the limits. 3. Every other
    bucket takes the largest batch that fits and exceeds none of these: step time, time of encoding
    and forward pass, time of the backward pass.
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
        return False  # with any activation policy
    return memory(workload, bucket, gpu, gpus, choice).total <= gpu.memory


def within(time: StepTime, limit: StepTime) -> bool:
    return (
        time.total <= limit.total
        and time.encode + time.forward <= limit.encode + limit.forward
        and time.backward <= limit.backward
    )


def _largest(fit: Callable[[PlannedBucket], bool], bucket: PlannedBucket) -> int:
    """The largest batch that fits, by bisection: the cost grows with the batch."""

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
