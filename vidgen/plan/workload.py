"""What is to be trained, reduced to what decides its cost."""

import math
import re
from dataclasses import dataclass, replace

from vidgen.models.geometry import Geometry
from vidgen.models.mmdit.config import MMDiTConfig
from vidgen.plan.encoders import Encoders
from vidgen.recipe.schema import Recipe
from vidgen.runtime.memory.block_memory import BlockMemory

_STATE_BYTES = {"fp32": 8, "bf16": 4, "8bit": 2}


@dataclass(frozen=True)
class PlannedBucket:
    """One row of a recipe's table, taken at its longest frame count and at 1:1."""

    resolution: str
    frames: int
    side: int  # pixels
    batch: int  # clips of one data-parallel rank (a context-parallel group) and micro-step

    @property
    def name(self) -> str:
        return f"{self.resolution} x {self.frames}"


@dataclass(frozen=True)
class Workload:
    model: MMDiTConfig
    buckets: tuple[PlannedBucket, ...]
    encoders: Encoders
    compression: tuple[int, int, int] = Geometry.compression  # of the autoencoder, as `causal`
    causal: bool = Geometry.causal
    steps: int = 1
    accumulate: int = 1  # micro-steps a step
    zero: int = 2
    context: int = 1  # GPUs that share one sample's tokens
    tensor: int = 1  # GPUs that share every block's weights
    copies: int = 1  # of the sharded parameters: hybrid sharding
    blocks: tuple[BlockMemory, ...] | None = None  # None: for each bucket what costs least
    host_bytes: float = 32e9  # of a GPU's share of pinned memory for activations
    compiled: bool = False
    state_bytes: int = 8  # of a parameter's two moments
    ema: bool = True

    def grid(self, bucket: PlannedBucket) -> tuple[int, int, int]:
        """Video tokens along frames, rows and columns."""
        geometry = Geometry.of(self, self.model.patch_size)
        return geometry.token_grid(bucket.frames, bucket.side, bucket.side)

    def tokens(self, bucket: PlannedBucket) -> int:
        t, h, w = self.grid(bucket)
        return t * h * w + self.encoders.text_len

    def with_batches(self, batches: dict[PlannedBucket, int]) -> "Workload":
        buckets = (replace(b, batch=batches.get(b, b.batch)) for b in self.buckets)
        return replace(self, buckets=tuple(buckets))


def workload_of(recipe: Recipe) -> Workload:
    """What a recipe trains."""
    kind = recipe.autoencoder.kind
    rows = {
        PlannedBucket(name, int(frames.split("-")[-1]), _side(name), row.batch or 1): row
        for name, table in recipe.data.buckets.items()
        for frames, row in table.items()
    }
    workload = Workload(
        model=recipe.model,
        buckets=tuple(rows),
        encoders=Encoders(kind, recipe.text.kind, recipe.text.length),
        compression=recipe.autoencoder.compression,
        causal=recipe.autoencoder.causal,
        steps=recipe.train.steps,
        accumulate=recipe.train.accumulate,
        zero=recipe.parallel.zero,
        context=recipe.parallel.context,
        tensor=recipe.parallel.tensor,
        copies=recipe.parallel.copies,
        blocks=recipe.block_memory(),
        host_bytes=recipe.offload.host_gb * 1e9,
        compiled=recipe.train.compile,
        state_bytes=_STATE_BYTES[recipe.optim.states],
        ema=recipe.train.ema_decay is not None,
    )
    budget = recipe.data.tokens or 0
    return workload.with_batches(
        {
            bucket: max(1, budget // math.prod(workload.grid(bucket)))
            for bucket, row in rows.items()
            if row.batch is None
        }
    )


def _side(resolution: str) -> int:
    """Side of the square of a resolution's area: 256 of "256px", 640 of "480p"."""
    match = re.match(r"(\d+)(px|p)", resolution)
    if match is None:
        raise ValueError(f"{resolution!r} is no resolution such as 256px or 480p")
    side = int(match[1])
    return side if match[2] == "px" else round(side * (16 / 9) ** 0.5)
