"""Batches without end: the order's steps, decoded, cut, and on the device before they are asked."""

import hashlib
import json
import logging
import math
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidgen.data.buckets import Bucket, BucketTable, frame_interval
from vidgen.data.config import DataConfig
from vidgen.data.manifest import Clip, Manifest
from vidgen.data.order import EpochOrder, Step, sample_draws
from vidgen.data.video import BadClip, read_clip
from vidgen.errors import UserError
from vidgen.runtime.loader import Feed, Job
from vidgen.runtime.memory import Arena, Lane

_log = logging.getLogger(__name__)
_STATE_VERSION = 1


@dataclass(frozen=True)
class Batch:
    video_BTHWC: Tensor  # uint8, on the device
    captions: list[str]
    fps: list[float]  # of the frames as read; NaN where there is none
    motion: list[float | None]
    keys: list[int]  # manifest rows
    bucket: Bucket
    epoch: int
    step_in_epoch: int


@dataclass(frozen=True)
class _Plan:
    step: Step
    epoch: int
    step_in_epoch: int
    first: int  # this rank's first position in the step


@dataclass(frozen=True)
class _Read:
    clip: Clip
    fps: float
    replaced: int  # unreadable clips passed over


class Loader:
    """Iterates for ever; `state_dict` names the next batch, whatever has been read ahead."""

    def __init__(
        self,
        cfg: DataConfig,
        manifest: Manifest,
        table: BucketTable,
        *,
        seed: int,
        rank: int,
        world: int,
        device: torch.device | str,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}")
        if not 0 <= seed < 2**63:
            raise UserError(f"seed is {seed}; expected 0 to 2^63 - 1")
        self.manifest, self.table = manifest, table
        self._cfg, self._seed, self._world = cfg, seed, world
        self._epoch = self._step = 0
        self._orders = _Orders(table, manifest, seed, rank, world)
        left_out = self._orders.of(0).left_out
        if left_out:
            why = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
            _log.warning("clips of %s in no batch of epoch 0: %s", manifest.path, why)
        self._reader = _Reader(cfg, manifest, seed)
        slot = max(table.config(b).batch * b.frames * b.height * b.width * 3 for b in table.buckets)
        ahead = cfg.prefetch if cfg.workers else 1
        # 256: what the arena may round a slot up by.
        self._arena = Arena(
            (ahead + 1) * (slot + 256),
            pinned=torch.device(device).type == "cuda",
            name="loader arena",
        )
        self._lane = Lane(device, name="loader lane")
        self._feed: Feed[_Plan, _Read] | None = None
        self._close_feed: Any = None
        self.replaced = 0
        """Samples of this rank, up to the last batch, whose clip was unreadable."""
        self.skipped = 0
        """Steps passed over by `skip`."""

    @property
    def steps_in_epoch(self) -> int:
        return len(self._orders.of(self._epoch))

    @property
    def bad_clips(self) -> dict[int, str]:
        """Manifest row to reason, of every unreadable clip this process has met on this rank."""
        return dict(self._reader.bad)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._feed is None:
            self._feed = Feed(
                self._orders.jobs(self._epoch, self._step),
                self._reader.fill,
                arena=self._arena,
                lane=self._lane,
                workers=self._cfg.workers,
                ahead=self._cfg.prefetch,
            )
            self._close_feed = weakref.finalize(self, self._feed.close)
        plan, video, samples = self._feed.next()
        self._epoch, self._step = plan.epoch, plan.step_in_epoch + 1
        self.replaced += sum(sample.replaced for sample in samples)
        return Batch(
            video_BTHWC=video,
            captions=[sample.clip.text for sample in samples],
            fps=[sample.fps for sample in samples],
            motion=[sample.clip.motion for sample in samples],
            keys=[sample.clip.row for sample in samples],
            bucket=plan.step.bucket,
            epoch=plan.epoch,
            step_in_epoch=plan.step_in_epoch,
        )

    def skip(self, steps: int) -> None:
        """Pass over the next `steps` batches without reading them."""
        self._stop()
        self.skipped += steps
        self._step += steps
        while self._step > (length := self.steps_in_epoch):
            self._step -= length
            self._epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """Under 1 KiB of JSON; the same on every rank but for `replaced`."""
        return {
            "version": _STATE_VERSION,
            "seed": self._seed,
            "epoch": self._epoch,
            "step": self._step,
            "world": self._world,
            "rows": len(self.manifest),
            "columns": self.manifest.digests,
            "buckets": self._hash([self.table.describe(), self._cfg.crop, self._cfg.flip]),
            "global_batch": self._hash(
                [self.table.config(b).batch * self._world for b in self.table.buckets]
            ),
            "replaced": self.replaced,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the saved place; refuses where the samples would not be the same ones."""
        self._check_same(state)
        self._stop()
        self._epoch, self._step = state["epoch"], state["step"]
        self.replaced, self.skipped = state["replaced"], state["skipped"]

    def close(self) -> None:
        self._stop()
        self._arena.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self) -> None:
        if self._close_feed is not None:
            self._close_feed()
        self._feed = self._close_feed = None

    def _check_same(self, state: dict[str, Any]) -> None:
        mine = self.state_dict()
        if state.get("version") != _STATE_VERSION:
            raise UserError(
                f"the loader's saved state has version {state.get('version')}; this vidgen reads "
                f"version {_STATE_VERSION}: resume with the vidgen that wrote it"
            )
        if (state["rows"], state["columns"]) != (mine["rows"], mine["columns"]):
            names = {**state["columns"], **mine["columns"]}
            changed = [n for n in names if state["columns"].get(n) != mine["columns"].get(n)]
            raise UserError(
                f"manifest {self.manifest.path} has changed since the checkpoint: "
                f"{state['rows']} rows then, {mine['rows']} now; column(s) {', '.join(changed)} "
                "differ. Resume with the manifest as it was, or start a new run from the weights"
            )
        if state["seed"] != self._seed:
            raise UserError(
                f"the checkpoint's data order has seed {state['seed']}, this run {self._seed}; "
                f"resume with seed {state['seed']}"
            )
        if state["buckets"] != mine["buckets"]:
            raise UserError(
                "data.buckets (resolutions, frame counts, keep), fps_max, crop or flip differ from "
                "the checkpoint's; resume with them as they were, or start a new run from the "
                "weights"
            )
        if state["global_batch"] != mine["global_batch"]:
            then, now = state["world"], self._world
            if then == now:
                advice = "set every data.buckets batch back to what it was"
            else:
                factor = f"{then}/{now}" if then % now else str(then // now)
                advice = (
                    f"it ran on {then} data-parallel ranks, now there are {now}: set every "
                    f"data.buckets batch to {factor} times what it was then"
                )
            raise UserError(
                "the global batch (batch x data-parallel ranks) differs from the checkpoint's; "
                + advice
            )

    @staticmethod
    def _hash(value: object) -> str:
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


class _Orders:
    """One rank's share of every epoch's steps, without end. Knows nothing of the loader, which the
    worker threads must not keep alive."""

    def __init__(
        self, table: BucketTable, manifest: Manifest, seed: int, rank: int, world: int
    ) -> None:
        self._table, self._manifest = table, manifest
        self._seed, self._rank, self._world = seed, rank, world
        self._latest: tuple[int, EpochOrder] | None = None

    def of(self, epoch: int) -> EpochOrder:
        if self._latest is None or self._latest[0] != epoch:
            order = EpochOrder(
                self._table, self._manifest, seed=self._seed, epoch=epoch, world=self._world
            )
            self._latest = epoch, order
        return self._latest[1]

    def jobs(self, epoch: int, first_step: int) -> Iterator[Job[_Plan]]:
        while True:
            order = self.of(epoch)
            for number in range(first_step, len(order)):
                step = order[number]
                bucket, batch = step.bucket, len(step.rows) // self._world
                plan = _Plan(step, epoch, number, self._rank * batch)
                yield Job(plan, (batch, bucket.frames, bucket.height, bucket.width, 3))
            epoch, first_step = epoch + 1, 0


class _Reader:
    """Reads one sample of a step into its place; called from several threads."""

    def __init__(self, cfg: DataConfig, manifest: Manifest, seed: int) -> None:
        self._cfg, self._manifest, self._seed = cfg, manifest, seed
        self.bad: dict[int, str] = {}
        self._lock = threading.Lock()
        self._kept: dict[tuple[object, ...], np.ndarray] = {}
        self._room = cfg.cache_bytes

    def fill(self, plan: _Plan, sample: int, out: np.ndarray) -> _Read:
        for replaced, row in enumerate(plan.step.candidates(plan.first + sample)):
            if row in self.bad:
                continue
            clip = self._manifest[row]
            try:
                return _Read(clip, self._read(clip, plan.epoch, out), replaced)
            except BadClip as error:
                self._note(clip, str(error))
        raise UserError(
            f"none of the {len(plan.step.queue)} clips of bucket {plan.step.bucket} can be read; "
            f"the last reason: {list(self.bad.values())[-1]}"
        )

    def _read(self, clip: Clip, epoch: int, out: np.ndarray) -> float:
        """Fills `out`; returns the rate of its frames."""
        draws = sample_draws(self._seed, epoch, clip.row)
        interval = int(frame_interval(np.array(clip.fps), self._cfg.fps_max))
        frames, height, width = out.shape[:3]
        span = (frames - 1) * interval + 1
        start = math.floor(draws.start * (clip.num_frames - span + 1))
        at = (draws.top, draws.left) if self._cfg.crop == "random" else (0.5, 0.5)
        flip = self._cfg.flip and draws.flip < 0.5
        key = (clip.row, start, frames, height, width, at, flip)
        kept = self._kept.get(key)
        if kept is not None:
            out[:] = kept
        else:
            read_clip(
                clip.path,
                range(start, start + span, interval),
                size=(height, width),
                crop_at=at,
                flip=flip,
                expect=(clip.height, clip.width),
                out=out,
            )
            self._keep(key, out)
        return clip.fps / interval

    def _keep(self, key: tuple[object, ...], pixels: np.ndarray) -> None:
        with self._lock:
            if pixels.nbytes > self._room or key in self._kept:
                return
            self._room -= pixels.nbytes
            self._kept[key] = pixels.copy()

    def _note(self, clip: Clip, reason: str) -> None:
        with self._lock:
            if clip.row in self.bad:
                return
            self.bad[clip.row] = reason
            count, limit = len(self.bad), self._cfg.bad_clip_limit
        _log.warning("clip %s (row %d) is passed over: %s", clip.path, clip.row, reason)
        if count > limit:
            raise UserError(
                f"{count} clips cannot be read, more than data.bad_clip_limit={limit}; the last is "
                f"{clip.path}: {reason}"
            )
