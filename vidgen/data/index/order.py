"""Which clips make up which step: a pure function of seed, epoch, manifest, buckets, global batch.

Every draw is counter-based: its value depends on what it is for, never on what was drawn before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vidgen.data.index.buckets import Bucket, BucketTable, assign
from vidgen.data.index.manifest import Manifest
from vidgen.errors import UserError

# What a draw is for: part of its key, so that no two uses share numbers.
_KEEP, _SHUFFLE_CLIPS, _SHUFFLE_STEPS, _SAMPLE = range(4)


def random_bits(count: int, seed: int, purpose: int, epoch: int, item: int = 0) -> np.ndarray:
    """`count` uint64; raw Philox output, whose values numpy promises never to change."""
    philox = np.random.Philox(key=[seed, purpose], counter=[0, item, epoch, 0])
    return philox.random_raw(count)


def uniforms(count: int, seed: int, purpose: int, epoch: int, item: int = 0) -> np.ndarray:
    """`count` float64 in [0, 1)."""
    bits = random_bits(count, seed, purpose, epoch, item)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class SampleDraws:
    """Where a clip is cut, in [0, 1), for one row in one epoch."""

    start: float
    top: float
    left: float
    flip: float


def sample_draws(seed: int, epoch: int, row: int) -> SampleDraws:
    return SampleDraws(*uniforms(4, seed, _SAMPLE, epoch, row).tolist())


@dataclass(frozen=True)
class Step:
    bucket: Bucket
    rows: np.ndarray  # (global batch,), in the order the ranks share them out
    queue: np.ndarray  # every row of the bucket this epoch, in order
    at: int  # where in the queue the step begins

    def candidates(self, position: int) -> Iterator[int]:
        """The row at `position` of the step, then its replacements should it be unreadable.

        They are the clips after the step, round to the step itself, each position beginning at a
        place of its own so that two replacements in one step differ.
        """
        yield int(self.rows[position])
        others = len(self.queue) - len(self.rows)
        after = self.at + len(self.rows)
        for i in range(others):
            yield int(self.queue[(after + (position + i) % others) % len(self.queue)])
        for i in range(1, len(self.rows)):
            yield int(self.rows[(position + i) % len(self.rows)])


class EpochOrder:
    """All steps of one epoch; a clip is in at most one of them."""

    def __init__(
        self, table: BucketTable, manifest: Manifest, *, seed: int, epoch: int, shares: int
    ) -> None:
        """`shares` of a bucket's batch make a step: data-parallel ranks times micro-steps. Only its
        product with a batch size matters."""
        rows, shelves = len(manifest), len(table.shelves)
        draws_needed = any(table.config(bucket).keep < 1 for bucket in table.buckets)
        chances = (
            uniforms(rows * shelves, seed, _KEEP, epoch).reshape(rows, shelves)
            if draws_needed
            else None
        )
        assignment = assign(table, manifest, chances)
        # Every row has its own draw, so a bucket's order depends on nothing but its members.
        rank_of_row = random_bits(rows, seed, _SHUFFLE_CLIPS, epoch)
        by_bucket = np.lexsort((rank_of_row, assignment.bucket_of_row))
        ends = np.searchsorted(
            assignment.bucket_of_row[by_bucket], np.arange(len(table.buckets) + 1)
        )
        self._buckets = table.buckets
        self._queues = [by_bucket[a:b] for a, b in pairwise(ends)]
        self._batches = [table.batch(bucket) * shares for bucket in table.buckets]
        whole = [len(q) // batch for q, batch in zip(self._queues, self._batches, strict=True)]
        bucket_of_step = np.repeat(np.arange(len(whole)), whole)
        place = np.concatenate([np.arange(n) for n in whole]) if whole else np.zeros(0, np.int64)
        shuffled = np.argsort(
            random_bits(len(bucket_of_step), seed, _SHUFFLE_STEPS, epoch), kind="stable"
        )
        self._bucket_of_step, self._place = bucket_of_step[shuffled], place[shuffled]
        self.left_out = dict(assignment.left_out)
        """Why clips are in no step this epoch, with how many."""
        starved = sum(
            len(q) for q, batch in zip(self._queues, self._batches, strict=True) if len(q) < batch
        )
        if starved:
            self.left_out["in a bucket with fewer clips than one global batch"] = starved
        if not len(self):
            why = "; ".join(f"{count} {reason}" for reason, count in self.left_out.items())
            raise UserError(
                f"no batch can be made of the {rows} clips of {manifest.path} in epoch {epoch}: "
                f"{why}. Change data.buckets (a smaller resolution, frame count or batch)"
            )

    def __len__(self) -> int:
        return len(self._place)

    def __getitem__(self, step: int) -> Step:
        bucket = int(self._bucket_of_step[step])
        batch = self._batches[bucket]
        at = int(self._place[step]) * batch
        queue = self._queues[bucket]
        return Step(self._buckets[bucket], queue[at : at + batch], queue, at)
