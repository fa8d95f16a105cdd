"""Memory and time of a training step, from shapes, FLOPs, bytes and a stated efficiency."""

from dataclasses import dataclass, replace

from vidgen.models.mmdit.flops import flops, parameters
from vidgen.plan.blocks import (
    BF16,
    NothingFits,
    block_flops,
    block_parameters,
    in_flight_bytes,
    keeping,
    local_tokens,
    working_bytes,
)
from vidgen.plan.network import all_reduce_s, gather_s
from vidgen.plan.workload import PlannedBucket, Workload
from vidgen.runtime.memory.block_memory import BlockMemory, Choice
from vidgen.runtime.observe.gpus import Gpu

SECONDS_PER_DAY = 86_400
RESERVE = 0.06  # of a GPU's memory: the driver, communication buffers and fragmentation

FP32 = 4


@dataclass(frozen=True)
class Efficiency:
    compute: float  # executed FLOP/s, recompute and encoders included, over the dense bf16 peak
    goodput: float = 1.0  # share of the wall time spent in steps: the rest waits, saves, restarts


# The report's system, stages 1 and 2. `compute` is what the longest row of Table 5 (256px, 129
# frames, batch 3, 3.2 videos/s on 8 GPUs: 7.5 s a step) comes to with FLOPs counted as here;
# `goodput` is that step over the 10.2 s an iteration of Table 3's stage 1 (85k iterations, 224
# GPUs, 2240 GPU days).
REPORT = Efficiency(compute=0.299, goodput=0.74)
# Stage 3: the longest row of Table 6 (0.08 videos/s: 50 s) and Table 3's 53.2 s an iteration.
REPORT_768PX = Efficiency(compute=0.213, goodput=0.94)


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the fullest moment of a step, by what they hold."""

    parameters: float
    gradients: float
    optimizer: float
    ema: float
    activations: float
    encoders: float
    reserve: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


@dataclass(frozen=True)
class StepTime:
    """Seconds of one micro-step on one GPU; communication and copies where nothing hides them."""

    encode: float  # frozen autoencoder and text encoders
    forward: float
    backward: float  # recompute included
    exposed: float  # communication that outlasts the computation beside it
    copies: float  # of activations to the host and back, likewise

    @property
    def total(self) -> float:
        return self.encode + self.forward + self.backward + self.exposed + self.copies


def shards(workload: Workload, gpus: int) -> int:
    """GPUs that the parameters are divided over by ZeRO."""
    return gpus // (workload.tensor * workload.copies)


def standing(workload: Workload, gpu: Gpu, gpus: int) -> Memory:
    """What does not depend on the batch."""
    count = parameters(workload.model) / workload.tensor
    largest = max(block_parameters(workload)) / workload.tensor
    shard = count / shards(workload, gpus)
    # fp32 masters are sharded; ZeRO-2 also keeps every bf16 copy, ZeRO-3 the block in use and
    # the next one. Until its last micro-step a rank holds its own gradients whole.
    gathered = count if workload.zero == 2 else 2 * largest
    whole = count if workload.accumulate > 1 else largest
    encoders = workload.encoders
    workspace = max(
        (encoders.workspace_bytes(b.frames, b.side) for b in workload.buckets), default=0
    )
    return Memory(
        parameters=FP32 * shard + BF16 * gathered,
        gradients=FP32 * (shard + whole),
        optimizer=workload.state_bytes * shard,
        ema=FP32 * shard if workload.ema else 0.0,
        activations=0.0,
        encoders=encoders.weight_bytes() + workspace,
        reserve=RESERVE * gpu.memory,
    )


def kept(
    workload: Workload, bucket: PlannedBucket, gpu: Gpu, gpus: int, efficiency: Efficiency
) -> Choice:
    """What the blocks keep, and what that adds to a step; NothingFits where nothing does."""
    tokens, attended = local_tokens(workload, bucket), workload.tokens(bucket)
    room = gpu.memory - standing(workload, gpu, gpus).total
    try:
        return keeping(workload, tokens, attended, gpu, gpu.flops * efficiency.compute, room)
    except NothingFits as error:
        raise NothingFits(f"bucket {bucket.name}: {error}") from None


def memory(
    workload: Workload, bucket: PlannedBucket, gpu: Gpu, gpus: int, choice: Choice
) -> Memory:
    tokens = local_tokens(workload, bucket)
    activations = choice.device_bytes + working_bytes(workload, tokens)
    activations += in_flight_bytes(workload, tokens, choice.blocks)
    return replace(standing(workload, gpu, gpus), activations=activations)


def recomputed_share(blocks: tuple[BlockMemory, ...]) -> float:
    """Of a forward pass's FLOPs: a token costs the same in every block."""
    return sum(how.recomputes for how in blocks) / len(blocks)


def executed_flops(
    workload: Workload, bucket: PlannedBucket, blocks: tuple[BlockMemory, ...]
) -> tuple[float, float, float]:
    """Of one clip, over the GPUs that share it: (encoders, forward, backward with recompute)."""
    forward = float(
        flops(workload.model, workload.grid(bucket), workload.encoders.text_len).forward
    )
    tokens = workload.tokens(bucket)
    again = sum(how.recomputes for how in blocks) * block_flops(workload, tokens, tokens)
    encode = workload.encoders.flops(bucket.frames, bucket.side)
    return float(encode), forward, 2 * forward + again


def step_time(
    workload: Workload,
    bucket: PlannedBucket,
    gpu: Gpu,
    gpus: int,
    efficiency: Efficiency,
    choice: Choice,
) -> StepTime:
    rate = gpu.flops * efficiency.compute
    encode, forward, _ = executed_flops(workload, bucket, choice.blocks)
    each = bucket.batch / (workload.context * workload.tensor) / rate
    forward *= each
    backward = 2 * forward + choice.again_s
    exposed = _sharding(workload, gpu, gpus, forward, backward)
    exposed += _ring(workload, bucket, gpu, rate) + _tensor_parallel(workload, bucket, gpu)
    return StepTime(
        # Ranks of a context group divide the encoding, those that divide the weights repeat it.
        encode=encode * bucket.batch / workload.context / rate,
        forward=forward,
        backward=backward,
        exposed=exposed,
        copies=choice.late_s,
    )


def _sharding(workload: Workload, gpu: Gpu, gpus: int, forward: float, backward: float) -> float:
    """Seconds of a micro-step's gathers and reductions that its computation does not hide.

    Weights are gathered block by block beside the forward pass, by ZeRO-3 beside the backward pass
    again; fp32 gradients are reduced beside the last micro-step's backward pass, and the shards
    of hybrid sharding added up over the copies.
    """
    over, calls = shards(workload, gpus), workload.model.depth + workload.model.depth_single_blocks
    count = parameters(workload.model) / workload.tensor
    gather = gather_s(gpu, over, BF16 * count, calls)
    again = gather if workload.zero == 3 else 0.0
    reduce = gather_s(gpu, over, FP32 * count, calls)
    reduce += all_reduce_s(gpu, workload.copies, gpus, FP32 * count / over, calls)
    last = max(0.0, again + reduce - backward)
    others = (workload.accumulate - 1) * max(0.0, again - backward)
    return max(0.0, gather - forward) + (last + others) / workload.accumulate


def _tensor_parallel(workload: Workload, bucket: PlannedBucket, gpu: Gpu) -> float:
    """Seconds in which ranks that divide the weights add up what they computed; nothing hides it:
    forward and backward, two tensors of a dual block and one of a single block."""
    ways, model = workload.tensor, workload.model
    tensors = 2 * (2 * model.depth + model.depth_single_blocks)
    size = BF16 * model.hidden_size * local_tokens(workload, bucket)
    return tensors * all_reduce_s(gpu, ways, workload.context * ways, size, 1)


def _ring(workload: Workload, bucket: PlannedBucket, gpu: Gpu, rate: float) -> float:
    """Seconds of ring attention's exchange that outlast the attention they overlap with."""
    if workload.context == 1:
        return 0.0
    cost = flops(workload.model, workload.grid(bucket), workload.encoders.text_len)
    blocks = workload.model.depth + workload.model.depth_single_blocks
    width = workload.model.hidden_size / workload.tensor
    one_way = 2 * BF16 * local_tokens(workload, bucket) * width  # keys and values of one rank
    # Forward passes keys and values on; backward those, and their gradients in fp32.
    link = gpu.link(workload.context * workload.tensor)
    moved = 4 * (workload.context - 1) * one_way * blocks / link
    attention = cost.attention * bucket.batch / (workload.context * workload.tensor) / rate
    return max(0.0, moved - 3 * attention)


def efficiency_of(
    workload: Workload,
    bucket: PlannedBucket,
    gpu: Gpu,
    blocks: tuple[BlockMemory, ...],
    seconds: float,
) -> Efficiency:
    """The compute efficiency at which a micro-step of `bucket` takes `seconds`, nothing exposed."""
    executed = sum(executed_flops(workload, bucket, blocks)) * bucket.batch / workload.context
    return Efficiency(compute=executed / seconds / gpu.flops)


def mfu(workload: Workload, bucket: PlannedBucket, gpu: Gpu, seconds: float) -> float:
    """Model FLOPs (recompute and encoders not counted) over the peak."""
    cost = flops(workload.model, workload.grid(bucket), workload.encoders.text_len)
    each = bucket.batch / (workload.context * workload.tensor)
    return cost.training * each / seconds / gpu.flops
