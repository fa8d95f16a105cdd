"""Ranks that work on the same sample read it each for itself; here they make sure it is the same.

A clip may time out or fail on one of them alone, which would replace it there. What one rank finds
unreadable is so for the group: every rank reads again the samples that are replaced by that.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vidgen.data.config import DataConfig
from vidgen.data.index.buckets import Bucket
from vidgen.data.read.samples import BatchPlan, Reader, Sample
from vidgen.runtime.loader.feed import Feed, Filling, Job
from vidgen.runtime.memory import Arena

Contents = TypeVar("Contents")


class ReadingGroup(Generic[Contents]):
    """`replace(contents, index, plan, sample, bytes)` puts what was read again in its place."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        reader: Reader,
        cfg: DataConfig,
        sizes: dict[Bucket, tuple[int, ...]],
        replace: Callable[[Any, int, BatchPlan, Sample, Tensor], None],
    ) -> None:
        """`group` takes CPU tensors: one small exchange a batch."""
        self._group, self._reader, self._cfg = group, reader, cfg
        self._sizes, self._replace = sizes, replace

    def agree(self, plan: BatchPlan, contents: Contents, samples: list[Sample]) -> list[Sample]:
        """The samples that all ranks of the group have; `contents` are changed to be theirs."""
        samples = list(samples)
        while not self._same([sample.clip.row for sample in samples]):
            everyones: list[Any] = [None] * dist.get_world_size(self._group)
            dist.all_gather_object(everyones, self._reader.bad, group=self._group)
            for bad in everyones:
                self._reader.learn(bad)
            changed = [
                index
                for index, sample in enumerate(samples)
                if sample.clip.row != self._reader.choice(plan, index)
            ]
            if changed:
                again = self._read(plan, changed)
                for index, (sample, data) in zip(changed, again, strict=True):
                    samples[index] = sample
                    self._replace(contents, index, plan, sample, data)
        return samples

    def _same(self, rows: Sequence[int]) -> bool:
        mine = torch.tensor(rows)
        everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(everyones, mine, group=self._group)
        return all(torch.equal(other, mine) for other in everyones)

    def _read(self, plan: BatchPlan, indices: list[int]) -> list[tuple[Sample, Tensor]]:
        """With the same time limit, in a worker of its own, as the others are busy ahead."""

        def fill(plan: BatchPlan, at: int, out: np.ndarray) -> Filling[Sample]:
            return self._reader.fill(plan, indices[at], out)

        shape = (len(indices), *self._sizes[plan.step.bucket])
        workers = min(1, self._cfg.workers)
        arena = Arena(
            math.prod(shape) + 4096, pinned=False, shared=workers > 0, name="replacement arena"
        )
        feed: Feed[BatchPlan, Sample] = Feed(
            iter([Job(plan, shape)]),
            fill,
            arena=arena,
            lane=None,
            largest=math.prod(shape),
            workers=workers,
            ahead=1,
            timeout_s=self._cfg.clip_timeout_s,
            name="replacement",
        )
        try:
            _, contents, samples = feed.next()
            read = [(sample, data.clone()) for sample, data in zip(samples, contents, strict=True)]
            del contents  # a view of the slot
        finally:
            feed.close()
        arena.close()
        return read
