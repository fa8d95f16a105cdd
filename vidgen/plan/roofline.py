"""How long a step's forward and backward take by part when each part runs at its expected rate.

A prediction to compare the first measurement with: FLOPs and bytes from the shapes, rates as
fractions of the GPU's data sheet. The fractions come from published kernels on Hopper and from
reading the compiled code; none was measured with vidgen.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vidgen.models.mmdit.flops import flops
from vidgen.plan.blocks import BF16, block_parameters, local_tokens
from vidgen.plan.workload import PlannedBucket, Workload
from vidgen.runtime.memory.block_memory import BlockMemory
from vidgen.runtime.observe.gpus import Gpu

MATMUL = 0.698  # of the dense peak: 690 of 989 TFLOP/s
# Forward and backward of attention, of the dense peak.
ATTENTION = {
    "cudnn": (0.617, 0.506),  # 610 and 500 TFLOP/s
    "sdpa_flash": (0.374, 0.273),  # mma.sync: 370 and 270
    "native": (0.273, 0.177),  # mma.sync: 270 and 175
}
COPY = 0.84  # a device copy, of the memory's bandwidth
OPS_NOW, OPS_TUNED = 0.42, 0.8  # of a copy: with 32-bit stores, and as they should be
GAPS = 0.0127  # of the rest of the step: launches and the host
BACKWARD_OF_ATTENTION = 2.5  # its FLOPs over the forward's: five products for two

# Widths of the hidden size that the ops of a block read and write for each token, with an MLP of
# ratio r. Dual: modulate 2, joint q k v 6, gated residual and modulate 4, GELU 2r, gated residual
# 3. Single: modulate 2, rotation 6, GELU 2r and attention's copy 2, gated residual 3. Backward: the
# same with the gradients, and one pass over every product's gradient for the bias.
FORWARD_WIDTHS = ((15.0, 2.0), (13.0, 2.0))
BACKWARD_WIDTHS = ((27.0, 4.0), (21.0, 4.0))


@dataclass(frozen=True)
class Again:
    """The share of the blocks whose parts run again in the backward pass."""

    matmuls: float
    attention: float
    ops: float


@dataclass(frozen=True)
class Part:
    name: str
    seconds: float
    work: float  # FLOPs or bytes
    bound: str


@dataclass(frozen=True)
class Prediction:
    what: str
    parts: tuple[Part, ...]
    videos_per_s: float  # a GPU

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)


def again_of(blocks: Iterable[BlockMemory]) -> Again:
    """By what each block keeps."""
    kept = list(blocks)
    whole = sum(how.recomputes for how in kept) / len(kept)
    ops = sum(how.keeps_products for how in kept) / len(kept)
    return Again(matmuls=whole, attention=whole, ops=whole + ops)


def predict(
    workload: Workload,
    bucket: PlannedBucket,
    gpu: Gpu,
    again: Again,
    what: str,
    *,
    attention: str = "cudnn",
    ops: float = OPS_NOW,
) -> Prediction:
    """One micro-step of one GPU, encoders and the optimizer left out."""
    model, ranks = workload.model, workload.context
    one = flops(model, workload.grid(bucket), workload.encoders.text_len)
    share = bucket.batch / ranks
    tokens = local_tokens(workload, bucket)
    width_bytes = BF16 * model.hidden_size * tokens

    matmul = one.linear * share * (3 + again.matmuls)
    forward = one.attention * share * (1 + again.attention)
    backward = one.attention * share * BACKWARD_OF_ATTENTION
    kinds = (model.depth, model.depth_single_blocks)
    ratio = model.mlp_ratio
    moved = width_bytes * sum(
        count * ((a + b * ratio) * (1 + again.ops) + c + d * ratio)
        for count, (a, b), (c, d) in zip(kinds, FORWARD_WIDTHS, BACKWARD_WIDTHS, strict=True)
    )
    # q, k, v and out leave for the ranks that have the other heads, forward, again and backward.
    exchanged = sum(kinds) * 4 * width_bytes * (1 - 1 / ranks) * (2 + again.attention)
    rates = ATTENTION[attention]
    parts = [
        Part(
            "matmuls", matmul / (MATMUL * gpu.flops), matmul, _matmul_bound(workload, tokens, gpu)
        ),
        Part(
            "attention, forward" + (" and again" if again.attention else ""),
            forward / (rates[0] * gpu.flops),
            forward,
            f"tensor cores, {rates[0]:.0%} of the peak",
        ),
        Part(
            "attention, backward",
            backward / (rates[1] * gpu.flops),
            backward,
            f"tensor cores, {rates[1]:.0%} of the peak",
        ),
        Part(
            "fused ops and bias sums",
            moved / (ops * COPY * gpu.memory_bandwidth),
            moved,
            f"memory, {ops:.0%} of a copy",
        ),
        Part("exchange of heads", exchanged / gpu.link(ranks), exchanged, "links, not hidden"),
    ]
    busy = sum(part.seconds for part in parts)
    parts.append(Part("gaps", GAPS * busy, 0.0, "host"))
    return Prediction(what, tuple(parts), share / (busy * (1 + GAPS)))


def _matmul_bound(workload: Workload, tokens: float, gpu: Gpu) -> str:
    """A layer's FLOPs beside its bytes: weights once, and each token in and out."""
    dual, _ = block_parameters(workload)
    weights, width = dual / 2, workload.model.hidden_size
    per_token = 2 * (4 + 2 * workload.model.mlp_ratio) * width**2
    moved = BF16 * (weights + tokens * width * 2 * (3 + workload.model.mlp_ratio))
    if tokens * per_token / (MATMUL * gpu.flops) > moved / (COPY * gpu.memory_bandwidth):
        return f"tensor cores, {MATMUL:.0%} of the peak"
    return "memory: too few tokens for the weights"


def levers(workload: Workload, bucket: PlannedBucket, gpu: Gpu) -> list[Prediction]:
    """As the recipe is, then with each lever; the first is the prediction of the measurement."""
    again = again_of(workload.blocks or (BlockMemory.RECOMPUTE,))
    fast = replace(again, matmuls=0.0, attention=0.0, ops=1.0)
    no_attention = replace(again, attention=0.0)

    def say(what: str, again: Again = again, **more: object) -> Prediction:
        return predict(workload, bucket, gpu, again, what, **more)  # type: ignore[arg-type]

    return [
        say("as the recipe is"),
        say("with SDPA flash attention", attention="sdpa_flash"),
        say("with native attention", attention="native"),
        say(f"ops at {OPS_TUNED:.0%} of a copy", ops=OPS_TUNED),
        say("attention kept", no_attention),
        say(f"attention kept, ops at {OPS_TUNED:.0%}", no_attention, ops=OPS_TUNED),
        say("products kept (attention too)", fast),
        say(f"products kept, ops at {OPS_TUNED:.0%}", fast, ops=OPS_TUNED),
    ]


def assumptions(workload: Workload, gpu: Gpu) -> list[str]:
    tera = 1e12
    kernels = (
        f"assumed of {gpu.name}: {gpu.flops / tera:.0f} TFLOP/s dense bf16, of which matmuls reach "
        f"{MATMUL:.0%}, cuDNN's attention {ATTENTION['cudnn'][0]:.0%} forward and "
        f"{ATTENTION['cudnn'][1]:.0%} backward;"
    )
    memory = (
        f"{gpu.memory_bandwidth / tera:.3g} TB/s of memory, of which a copy reaches {COPY:.0%} and "
        f"ops {OPS_NOW:.0%} of the copy; gaps {GAPS:.1%}; exchanges are not hidden;"
    )
    said = [
        kernels,
        memory,
        "without encoders, optimizer and gradient reduction; whether it fits is `vidgen plan`'s",
    ]
    if workload.blocks is None:
        said.append("recompute=auto is taken as every block recomputed")
    return said
