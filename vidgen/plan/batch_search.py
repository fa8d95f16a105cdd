"""Batch sizes by the report's three steps, over the model of memory and time."""

from collections.abc import Callable
from dataclasses import replace

from vidgen.errors import UserError
from vidgen.plan.cost import Efficiency, StepTime, memory, step_time
from vidgen.plan.hardware import Gpu
from vidgen.plan.workload import Bucket, Workload

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
    batch = longest_batch or _largest(lambda b: fits(workload, b, gpu, gpus), longest)
    limit = step_time(workload, replace(longest, batch=batch), gpu, gpus, efficiency)
    batches = {longest: batch}

    def allowed(bucket: Bucket) -> bool:
        time = step_time(workload, bucket, gpu, gpus, efficiency)
        return fits(workload, bucket, gpu, gpus) and within(time, limit)

    for bucket in workload.buckets:
        if bucket is not longest:
            batches[bucket] = _largest(allowed, bucket)
    return workload.with_batches(batches)


def fits(workload: Workload, bucket: Bucket, gpu: Gpu, gpus: int) -> bool:
    return memory(workload, bucket, gpu, gpus).total <= gpu.memory


def within(time: StepTime, limit: StepTime) -> bool:
    return (
        time.total <= limit.total
        and time.encode + time.forward <= limit.encode + limit.forward
        and time.backward <= limit.backward
    )


def _largest(allowed: Callable[[Bucket], bool], bucket: Bucket) -> int:
    """The largest batch that is allowed; what it costs grows with it, so bisection finds it."""
    if not allowed(replace(bucket, batch=1)):
        raise UserError(
            f"bucket {bucket.name}: not even a batch of 1 fits; recompute more blocks, share a "
            "sample over more GPUs (parallel.context), or use parallel.zero=3"
        )
    low, high = 1, _LARGEST
    while low < high:
        middle = (low + high + 1) // 2
        if allowed(replace(bucket, batch=middle)):
            low = middle
        else:
            high = middle - 1
    return low
