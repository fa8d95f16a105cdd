"""One rank's part has its share of the FLOPs; the largest batch is found by trying."""

from dataclasses import replace

import pytest
import torch

from vidgen.bench.measure import Bench, Measured, search
from vidgen.models.mmdit.config import PRESETS
from vidgen.models.mmdit.flops import flops
from vidgen.plan.encoders import Encoders
from vidgen.plan.workload import Bucket, Workload
from vidgen.runtime.memory.block_memory import BlockMemory


def workload(context: int) -> Workload:
    return Workload(
        model=PRESETS["tiny"],
        buckets=(Bucket("64px", 5, 64, 1),),
        encoders=Encoders("block_dct", "builtin", 32),
        context=context,
        blocks=(BlockMemory.KEEP,) * 3,
    )


def test_a_part_of_context_parallelism_has_its_share_of_the_flops() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for context in (1, 2):
        load = workload(context)
        bench = Bench(load, torch.device("cpu"), torch.float32)
        bench.seams = type(bench.seams)(
            run_block=bench.seams.run_block,
            attention=_counted(bench),
        )
        inputs, _ = bench._inputs(load.buckets[0])
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            bench.model(**inputs)
        counts.append(counter.get_total_flops())
    one = flops(workload(1).model, (2, 4, 4), 32)
    # What is done once a sample (modulation) each rank does; the rest is divided.
    assert counts[0] - counts[1] == (one.forward - one.conditioning) // 2


def _counted(bench: Bench):  # type: ignore[no-untyped-def]
    """The same arrangement over torch's attention, whose FLOPs are counted."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ranks = bench.workload.context
        batch, local, heads, width = q.shape
        q, k, v = (
            x.reshape(batch, local * ranks, heads // ranks, width).transpose(1, 2)
            for x in (q, k, v)
        )
        scores = (q @ k.transpose(2, 3)).softmax(-1)
        return (scores @ v).transpose(1, 2).reshape(batch, local, heads, width)

    return attend


def test_largest_batch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(workload(1), torch.device("cpu"), torch.float32)
    for most in (0, 1, 2, 3, 12, 45, 64):
        tried: list[int] = []

        def fits(bucket: Bucket, batch: int, most: int = most, tried: list[int] = tried) -> bool:
            tried.append(batch)
            return batch <= most

        monkeypatch.setattr(bench, "_fits", fits)
        assert bench.largest_batch(workload(1).buckets[0]) == most
        assert len(tried) <= 16


def test_search_stays_within_the_longest_buckets_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for 40 frames; a frame takes 1 ms forward and 2 backward, an image 3 ms backward."""
    buckets = (Bucket("64px", 1, 64, 1), Bucket("64px", 5, 64, 1), Bucket("64px", 17, 64, 1))
    bench = Bench(replace(workload(1), buckets=buckets), torch.device("cpu"), torch.float32)

    def measure(bucket: Bucket, rounds: int) -> Measured:
        frames = bucket.frames * bucket.batch
        backward = 3.0 if bucket.frames == 1 else 2.0
        return Measured(bucket.name, 1, bucket.batch, frames, backward * frames, 0, 0, 0, 0, frames)

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "_fits", lambda bucket, batch: bucket.frames * batch <= 40)
    # 17 frames fit twice: 34 ms forward, 68 backward.
    assert [found.batch for found in search(bench)] == [22, 6, 2]
