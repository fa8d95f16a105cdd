"""What is to be trained, reduced to what decides its cost."""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from vidgen.models.mmdit.config import MMDiTConfig
from vidgen.plan.encoders import Encoders
from vidgen.runtime.memory.block_memory import BlockMemory

# Frames, rows and columns behind one latent position, by the autoencoder's kind.
_COMPRESSION = {"video_dcae": (4, 32, 32)}
_COMPRESSION_USUAL = (4, 8, 8)
_STATE_BYTES = {"fp32": 8, "bf16": 4, "8bit": 2}


@dataclass(frozen=True)
class Bucket:
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
    buckets: tuple[Bucket, ...]
    encoders: Encoders
    compression: tuple[int, int, int] = _COMPRESSION_USUAL
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

    def grid(self, bucket: Bucket) -> tuple[int, int, int]:
        """Video tokens along frames, rows and columns."""
        t, h, w = self.compression
        patch = self.model.patch_size
        rows, columns = (bucket.side // (c * patch) for c in (h, w))
        return (bucket.frames - 1) // t + 1, rows, columns

    def tokens(self, bucket: Bucket) -> int:
        t, h, w = self.grid(bucket)
        return t * h * w + self.encoders.text_len

    def with_batches(self, batches: dict[Bucket, int]) -> "Workload":
        buckets = (replace(b, batch=batches.get(b, b.batch)) for b in self.buckets)
        return replace(self, buckets=tuple(buckets))


def workload_of(recipe: Any) -> Workload:
    """From a training recipe (vidgen.recipe.schema.Recipe, which this layer may not import)."""
    kind = recipe.autoencoder.kind
    rows = {
        Bucket(name, int(frames.split("-")[-1]), _side(name), row.batch or 1): row
        for name, table in recipe.data.buckets.items()
        for frames, row in table.items()
    }
    workload = Workload(
        model=recipe.model,
        buckets=tuple(rows),
        encoders=Encoders(kind, recipe.text.kind, recipe.text.length),
        compression=_COMPRESSION.get(kind, _COMPRESSION_USUAL),
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
