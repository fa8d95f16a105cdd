"""One rank's part has its share of the FLOPs; the largest batch is found by trying."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vidgen.bench import measure
from vidgen.errors import UserError
from vidgen.models.mmdit.config import PRESETS
from vidgen.models.mmdit.flops import flops
from vidgen.plan.encoders import Encoders
from vidgen.plan.workload import PlannedBucket, Workload
from vidgen.runtime.memory.block_memory import BlockMemory


def workload(context: int) -> Workload:
    return Workload(
        model=PRESETS["tiny"],
        buckets=(PlannedBucket("64px", 5, 64, 1),),
        encoders=Encoders("block_dct", "builtin", 32),
        context=context,
        blocks=(BlockMemory.KEEP,) * 3,
    )


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over (B, L, H, D) out of matrix products, whose FLOPs torch counts."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return ((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2)


def test_a_part_of_context_parallelism_has_its_share_of_the_flops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr(measure, "attention", attend)
    counts = []
    for context in (1, 2):
        load = workload(context)
        bench = measure.Bench(load, torch.device("cpu"), torch.float32)
        inputs, _ = bench._inputs(load.buckets[0])
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            bench.model(**inputs)
        counts.append(counter.get_total_flops())
    one = flops(workload(1).model, (2, 4, 4), 32)
    # Each rank computes the modulation, which is per sample; the rest is divided.
    assert counts[0] - counts[1] == (one.forward - one.conditioning) // 2


class Simulated(torch.nn.Module):
    """A model with a memory of so many frames that takes 1 ms a frame forward, and backward 2, an
    image 3. Its milliseconds pass on `clock` alone."""

    def __init__(self, memory: int) -> None:
        super().__init__()
        self.memory, self.clock, self.batches = memory, 0.0, list[int]()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x_BVD: Tensor, grid: tuple[int, int, int], **_: Any) -> Tensor:
        latent_frames = grid[0]
        frames = len(x_BVD) * (4 * latent_frames - 3)
        self.batches.append(len(x_BVD))
        if frames > self.memory:
            raise torch.OutOfMemoryError(f"{frames} frames")
        self.clock += 1e-3 * frames
        out = x_BVD * self.weight
        if out.requires_grad:
            backward = 1e-3 * frames * (3 if latent_frames == 1 else 2)
            out.register_hook(lambda _: self.pass_time(backward))
        return out

    def pass_time(self, seconds: float) -> None:
        self.clock += seconds


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Callable[..., measure.Bench]:
    """`simulated(workload, memory)`: a bench on a device that holds `memory` frames."""

    def make(load: Workload, memory: int) -> measure.Bench:
        model = Simulated(memory)
        clock = SimpleNamespace(perf_counter=lambda: model.clock)
        monkeypatch.setattr(measure, "time", clock)
        bench = measure.Bench(load, torch.device("cpu"), torch.float32)
        bench.model = model  # type: ignore[assignment]
        return bench

    return make


@pytest.mark.parametrize("most", [0, 1, 2, 3, 12, 45, 64])
def test_largest_batch_is_found(simulated: Callable[..., measure.Bench], most: int) -> None:
    load = workload(1)
    bench = simulated(load, memory=5 * most + 4)
    assert bench.largest_batch(load.buckets[0]) == most
    assert len(set(bench.model.batches)) <= 16


def test_a_measurement_is_the_fastest_round(simulated: Callable[..., measure.Bench]) -> None:
    load = workload(1)
    found = simulated(load, memory=100).measure(replace(load.buckets[0], batch=3), rounds=2)
    assert (found.forward_ms, found.backward_ms) == (pytest.approx(15), pytest.approx(30))
    assert found.videos_per_s == pytest.approx(3 / 0.045)
    needed = 3 * flops(load.model, (2, 4, 4), 32).training
    assert found.tflops == pytest.approx(needed / 0.045 / 1e12)


def test_search_stays_within_the_longest_buckets_times(
    simulated: Callable[..., measure.Bench],
) -> None:
    """Memory for 40 frames; a frame takes 1 ms forward and 2 backward, an image 3 ms backward."""
    buckets = tuple(PlannedBucket("64px", frames, 64, 1) for frames in (1, 5, 17))
    bench = simulated(replace(workload(1), buckets=buckets), memory=40)
    # 17 frames fit twice: 34 ms forward, 68 backward.
    assert [found.batch for found in measure.search(bench)] == [22, 6, 2]


def test_search_refuses_a_bucket_that_fits_nothing(
    simulated: Callable[..., measure.Bench],
) -> None:
    with pytest.raises(UserError, match="64px x 5: not even one clip fits"):
        measure.search(simulated(workload(1), memory=4))
