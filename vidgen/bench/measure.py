"""Forward and backward of a recipe's model on the device at hand, with random weights.

Where several ranks share a sample, this is one rank's part of it: its share of the tokens passes
the weights, and attention is what an exchange of heads leaves it, its share of the heads over all
tokens. What is exchanged is not.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vidgen.errors import UserError
from vidgen.models.mmdit import MMDiT, MMDiTConfig, Seams
from vidgen.models.mmdit.flops import flops
from vidgen.models.mmdit.parallel import blocks
from vidgen.plan.blocks import NothingFits
from vidgen.plan.workload import PlannedBucket, Workload
from vidgen.runtime.attention import attention
from vidgen.runtime.observe.gpus import GPUS_PER_NODE
from vidgen.runtime.observe.memory import peak_memory_gb
from vidgen.runtime.observe.mfu import hfu, mfu, peak
from vidgen.train.block_memory import BlockActivations


@dataclass(frozen=True)
class Measured:
    bucket: str
    tokens: int  # video and text of one clip
    batch: int
    forward_ms: float
    backward_ms: float
    videos_per_s: float  # a GPU
    tflops: float  # model FLOPs
    mfu: float
    hfu: float
    memory_gb: float

    @property
    def ms(self) -> float:
        return self.forward_ms + self.backward_ms

    def row(self) -> dict[str, Any]:
        return {**asdict(self), "ms": self.ms}


class Bench:
    """One model with room for its gradients, its blocks keeping what the workload says; measures
    bucket after bucket."""

    def __init__(
        self,
        workload: Workload,
        device: torch.device,
        dtype: torch.dtype,
        model: MMDiT | None = None,
    ) -> None:
        """`model` is another's, to be measured under this workload too."""
        heads, ranks = workload.model.num_heads, workload.context
        if heads % ranks:
            raise UserError(
                f"one rank's part of {ranks} is measured by its share of the {heads} heads, which "
                f"do not divide: measure with parallel.context={math.gcd(heads, ranks)}"
            )
        self.workload, self.device, self.dtype = workload, device, dtype
        self.model = model or random_model(workload.model, device, dtype)
        if workload.compiled and model is None:
            for block in blocks(self.model):
                block.compile()
        self.peak = peak(device, dtype)
        self.activations = BlockActivations(workload, device, GPUS_PER_NODE)
        self.seams = Seams(run_block=self.activations.run_block, attention=self._attention)

    def measure(self, bucket: PlannedBucket, rounds: int) -> Measured:
        """The fastest of `rounds`, one more before them to warm up."""
        inputs, target = self._inputs(bucket)
        self._settle()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        times = [self._once(inputs, target) for _ in range(rounds + 1)][1:]
        forward, backward = min(times, key=sum)
        one = flops(self.workload.model, self.workload.grid(bucket), self._text)
        share, clips = self.workload.context, bucket.batch
        again = self.activations.recomputed_share
        needed = clips * one.training / share
        executed = needed + clips * again * one.forward / share
        seconds = forward + backward
        return Measured(
            bucket=bucket.name,
            tokens=self.workload.tokens(bucket),
            batch=clips,
            forward_ms=1e3 * forward,
            backward_ms=1e3 * backward,
            videos_per_s=clips / share / seconds,
            tflops=needed / seconds / 1e12,
            mfu=mfu(needed, seconds, self.peak),
            hfu=hfu(executed, seconds, self.peak),
            memory_gb=peak_memory_gb(self.device),
        )

    @torch.no_grad()
    def pass_ms(self, bucket: PlannedBucket, rounds: int) -> float:
        """One pass as sampling runs it, without gradients: the fastest of `rounds`."""
        inputs, _ = self._inputs(bucket)
        taken = []
        for _ in range(rounds + 1):
            self._settle()
            began = time.perf_counter()
            self.model(**inputs)
            self._settle()
            taken.append(time.perf_counter() - began)
        return 1e3 * min(taken[1:])

    def step(self, bucket: PlannedBucket) -> Callable[[], None]:
        """One forward and backward, for a profiler to watch."""
        inputs, target = self._inputs(bucket)

        def once() -> None:
            self._once(inputs, target)

        return once

    def largest_batch(self, bucket: PlannedBucket) -> int:
        """By trying: doubled until memory is short, then refined; 0 if not even one clip fits."""
        best, more = 0, 1
        while self._fits(bucket, best + more):
            best += more
            more *= 2
        while more > 1:
            more //= 2
            if self._fits(bucket, best + more):
                best += more
        return best

    def close(self) -> None:
        self.activations.close()

    def forget(self) -> None:
        """Give back what a step that ran out of memory left."""
        self.model.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _fits(self, bucket: PlannedBucket, batch: int) -> bool:
        try:
            self.measure(replace(bucket, batch=batch), rounds=1)
        except (torch.OutOfMemoryError, NothingFits):
            self.forget()
            return False
        return True

    @property
    def _text(self) -> int:
        return self.workload.encoders.text_len

    def _inputs(self, bucket: PlannedBucket) -> tuple[dict[str, Any], Tensor]:
        config, context = self.workload.model, self.workload.context
        frames, rows, columns = self.workload.grid(bucket)
        video = frames * rows * columns
        if (video + self._text) % context or self._text % context:
            raise UserError(
                f"bucket {bucket.name} has {video} video and {self._text} text tokens, which do "
                f"not divide over {context} ranks evenly: measure another one"
            )

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, device=self.device).to(self.dtype)

        # A share of the tokens is a grid of one column: rotations cost the same at any position.
        local = video // context
        inputs: dict[str, Any] = {
            "x_BVD": random(bucket.batch, local, config.in_channels),
            "grid": (frames, rows, columns) if context == 1 else (1, local, 1),
            "txt": random(bucket.batch, self._text // context, config.context_in_dim),
            "vec": random(bucket.batch, config.vec_in_dim),
            "t": torch.full((bucket.batch,), 0.5, device=self.device),
            "cond": random(bucket.batch, local, config.cond_channels)
            if config.cond_embed
            else None,
            "guidance": torch.full((bucket.batch,), 4.0, device=self.device)
            if config.guidance_embed
            else None,
            "seams": self.seams,
        }
        return inputs, random(bucket.batch, local, config.in_channels)

    def _once(self, inputs: dict[str, Any], target: Tensor) -> tuple[float, float]:
        """Seconds forward and backward; gradients are made anew, as after an optimizer step."""
        self.model.zero_grad(set_to_none=True)
        self._settle()
        began = time.perf_counter()
        loss = (self.model(**inputs).float() - target.float()).square().mean()
        self._settle()
        between = time.perf_counter()
        loss.backward()
        self._settle()
        return between - began, time.perf_counter() - between

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ranks = self.workload.context
        if ranks == 1:
            return attention(q, k, v)
        batch, local, heads, width = q.shape
        parts = (x.reshape(batch, local * ranks, heads // ranks, width) for x in (q, k, v))
        return attention(*parts).reshape(batch, local, heads, width)

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def search(bench: Bench, rounds: int = 2) -> list[Measured]:
    """The report's three steps, measured: the longest bucket takes the largest batch that fits;
    its times are the limits; every other takes the largest that fits and stays within them."""
    longest = max(bench.workload.buckets, key=bench.workload.tokens)
    most = bench.largest_batch(longest)
    if most == 0:
        raise UserError(f"bucket {longest.name}: not even one clip fits; recompute more blocks")
    limit = bench.measure(replace(longest, batch=most), rounds)
    found = []
    for bucket in bench.workload.buckets:
        if bucket is longest:
            found.append(limit)
            continue
        low, high, best = 1, bench.largest_batch(bucket), None
        while low <= high:
            middle = (low + high) // 2
            tried = bench.measure(replace(bucket, batch=middle), rounds)
            if tried.forward_ms <= limit.forward_ms and tried.backward_ms <= limit.backward_ms:
                best, low = tried, middle + 1
            else:
                high = middle - 1
        if best is None:
            raise UserError(f"bucket {bucket.name}: one clip takes longer than {longest.name}")
        found.append(best)
    return found


def random_model(config: MMDiTConfig, device: torch.device, dtype: torch.dtype) -> MMDiT:
    """Small weights everywhere, modulation too: no block is the identity."""
    with torch.device("meta"):
        model = MMDiT(config).to(dtype)
    model.to_empty(device=device)
    with torch.no_grad():
        for name, param in model.named_parameters():
            fan_in = param.shape[1] if param.dim() > 1 else 1
            param.fill_(1.0) if name.endswith("scale") else param.normal_(
                std=0.02 if param.dim() < 2 else 0.5 / math.sqrt(fan_in)
            )
    return model
