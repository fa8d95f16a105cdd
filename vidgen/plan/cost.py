"""Memory and time of a training step, from shapes, FLOPs, bytes and a stated efficiency."""

from dataclasses import dataclass

from vidgen.models.mmdit.flops import flops, parameters
from vidgen.plan.hardware import Gpu
from vidgen.plan.workload import Bucket, Workload

SECONDS_PER_DAY = 86_400
RESERVE = 0.06  # of a GPU's memory: the driver, communication buffers and fragmentation

BF16, FP32 = 2, 4


@dataclass(frozen=True)
class Efficiency:
    compute: float  # executed FLOP/s, recompute and encoders included, over the dense bf16 peak
    goodput: float = 1.0  # share of the wall time spent in steps: the rest waits, saves, restarts


# The report's system, stage 1. `compute` is what the longest row of Table 5 (256px, 129 frames,
# batch 3, 3.2 videos/s on 8 GPUs: 7.5 s a step) comes to with FLOPs counted as here; `goodput` is
# that step over the 10.2 s an iteration of Table 3 (85k iterations, 224 GPUs, 2240 GPU days).
REPORT = Efficiency(compute=0.297, goodput=0.74)
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
    """Seconds of one micro-step on one GPU; communication counts where nothing hides it."""

    encode: float  # frozen autoencoder and text encoders
    forward: float
    backward: float  # recompute included
    exposed: float  # communication that outlasts the computation beside it

    @property
    def total(self) -> float:
        return self.encode + self.forward + self.backward + self.exposed


def block_parameters(workload: Workload) -> tuple[int, int]:
    """Weights of one dual-stream and one single-stream block; biases and norms left out."""
    width, hidden = workload.model.hidden_size, workload.model.mlp_hidden
    dual = 2 * (4 * width**2 + 2 * width * hidden + 6 * width**2)
    single = width * (3 * width + hidden) + (width + hidden) * width + 3 * width**2
    return dual, single


def activation_widths(workload: Workload) -> tuple[float, float]:
    """Values a token leaves behind in a dual and a single block, in units of the model's width.

    Dual: input, modulated input, qkv 3, joint q k v 3, attention out, projection out, residual,
    modulated again, MLP out; and the MLP's hidden values before and after GELU. Single: input,
    modulated input, qkv 3, rotated q k 2, attention out and its copy beside the MLP, block out;
    and the hidden values before and after GELU.
    """
    ratio = workload.model.mlp_ratio
    return 13 + 2 * ratio, 10 + 2 * ratio


def memory(workload: Workload, bucket: Bucket, gpu: Gpu, gpus: int) -> Memory:
    count = parameters(workload.model)
    dual, single = block_parameters(workload)
    largest = max(dual, single)
    shard = count / gpus
    # fp32 masters are sharded; ZeRO-2 also keeps every bf16 copy, ZeRO-3 the block in use and
    # the next one.
    gathered = count if workload.zero == 2 else 2 * largest
    tokens = workload.tokens(bucket) * bucket.batch / workload.context
    token_bytes = BF16 * workload.model.hidden_size * tokens
    per_dual, per_single = activation_widths(workload)
    again_dual = min(workload.recompute_dual, workload.model.depth)
    again_single = min(workload.recompute_single, workload.model.depth_single_blocks)
    away_dual = min(workload.offload_dual, workload.model.depth - again_dual)
    away_single = min(workload.offload_single, workload.model.depth_single_blocks - again_single)
    kept = (workload.model.depth - again_dual - away_dual) * per_dual
    kept += (workload.model.depth_single_blocks - again_single - away_single) * per_single
    if not workload.offload_inputs:
        kept += again_dual + again_single
    if away_dual or away_single:
        kept += 2 * max(per_dual, per_single)  # on the way out while the next block runs
    # The block in the backward pass holds its activations and about as much in gradients.
    working = 2 * max(per_dual, per_single)
    return Memory(
        parameters=FP32 * shard + BF16 * gathered,
        gradients=FP32 * shard + BF16 * largest,
        optimizer=2 * FP32 * shard,
        ema=FP32 * shard if workload.ema else 0.0,
        activations=token_bytes * (kept + working),
        encoders=workload.encoders.weight_bytes()
        + workload.encoders.workspace_bytes(bucket.frames, bucket.side),
        reserve=RESERVE * gpu.memory,
    )


def executed_flops(workload: Workload, bucket: Bucket) -> tuple[float, float, float]:
    """Of one clip, over the GPUs that share it: (encoders, forward, backward with recompute)."""
    cost = flops(workload.model, workload.grid(bucket), workload.encoders.text_len)
    model = workload.model
    dual, single = block_parameters(workload)
    again_dual = min(workload.recompute_dual, model.depth)
    again_single = min(workload.recompute_single, model.depth_single_blocks)
    # A token passes one stream of a dual block; attention costs the same in every block.
    passed = model.depth * dual / 2 + model.depth_single_blocks * single
    passed_again = again_dual * dual / 2 + again_single * single
    blocks = model.depth + model.depth_single_blocks
    again = (
        cost.linear * passed_again / passed + cost.attention * (again_dual + again_single) / blocks
    )
    encode = workload.encoders.flops(bucket.frames, bucket.side)
    return float(encode), float(cost.forward), 2 * cost.forward + again


def step_time(
    workload: Workload, bucket: Bucket, gpu: Gpu, gpus: int, efficiency: Efficiency
) -> StepTime:
    rate = gpu.flops * efficiency.compute
    share = bucket.batch / workload.context / rate
    encode, forward, backward = (part * share for part in executed_flops(workload, bucket))
    # Gradients are reduced beside the backward pass, weights gathered beside the forward pass;
    # ZeRO-3 gathers them for the backward pass once more.
    moved = BF16 * parameters(workload.model) * (gpus - 1) / gpus / gpu.link(gpus)
    beside_backward = moved if workload.zero == 2 else 2 * moved
    exposed = max(0.0, moved - forward) + max(0.0, beside_backward - backward)
    exposed += _ring(workload, bucket, gpu, rate)
    return StepTime(encode, forward, backward, exposed)


def _ring(workload: Workload, bucket: Bucket, gpu: Gpu, rate: float) -> float:
    """Seconds of ring attention's exchange that outlast the attention they overlap with."""
    if workload.context == 1:
        return 0.0
    cost = flops(workload.model, workload.grid(bucket), workload.encoders.text_len)
    blocks = workload.model.depth + workload.model.depth_single_blocks
    local = workload.tokens(bucket) * bucket.batch / workload.context
    one_way = 2 * BF16 * local * workload.model.hidden_size  # keys and values of one rank
    # Forward passes keys and values on, backward those and their gradients.
    moved = 3 * (workload.context - 1) * one_way * blocks / gpu.link(workload.context)
    return max(0.0, moved - 3 * cost.attention * bucket.batch / workload.context / rate)


def efficiency_of(
    workload: Workload, bucket: Bucket, gpu: Gpu, gpus: int, seconds: float
) -> Efficiency:
    """The compute efficiency at which a micro-step of `bucket` takes `seconds`, nothing exposed."""
    executed = sum(executed_flops(workload, bucket)) * bucket.batch / workload.context
    return Efficiency(compute=executed / seconds / gpu.flops)


def mfu(workload: Workload, bucket: Bucket, gpu: Gpu, seconds: float) -> float:
    """Model FLOPs (recompute and encoders not counted) over the peak."""
    cost = flops(workload.model, workload.grid(bucket), workload.encoders.text_len)
    return cost.training * bucket.batch / workload.context / seconds / gpu.flops
