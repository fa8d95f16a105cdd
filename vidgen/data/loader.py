"""Batches without end: the order's steps, decoded, cut, and on the device before they are asked."""

import hashlib
import json
import logging
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vidgen.data.cache.codec import ClipCodec
from vidgen.data.config import DataConfig
from vidgen.data.index.buckets import Bucket, BucketTable
from vidgen.data.index.manifest import Manifest
from vidgen.data.index.order import EpochOrder
from vidgen.data.packages import pyav, torchcodec
from vidgen.data.prefetch import Prefetcher
from vidgen.data.read.group import ReadingGroup
from vidgen.data.read.samples import BatchPlan, EntryReader, Reader, Sample, too_many_bad
from vidgen.errors import UserError
from vidgen.models.text.encoder import TextFeatures
from vidgen.runtime.loader.feed import Feed, Job
from vidgen.runtime.memory import Arena, Lane

_log = logging.getLogger(__name__)
_STATE_VERSION = 2
_ALIGN = 256  # bytes: entries are seen as floats where they lie


@dataclass(frozen=True)
class Latents:
    """Of a batch, on the device, in the dtype of the cache."""

    latent_BCTHW: Tensor
    text: TextFeatures
    given: dict[str, Tensor]
    """Of the clips' pieces, (B, C, T, H, W), by `diffusion.conditions.piece_name`."""

    def tensors(self) -> list[Tensor]:
        text = self.text
        return [self.latent_BCTHW, text.tokens_BLD, text.pooled_BD, *self.given.values()]


@dataclass(frozen=True)
class Batch:
    pixels_BTHWC: Tensor | None  # uint8, on the device; None where there are latents
    captions: list[str]
    fps: list[float]  # of the frames as read; NaN where there is none
    motion: list[float | None]
    keys: list[int]  # manifest rows
    bucket: Bucket
    epoch: int
    step_in_epoch: int
    micro_step: int = 0  # of the step; all of them have its bucket
    latents: Latents | None = None

    @property
    def video_BTHWC(self) -> Tensor:
        if self.pixels_BTHWC is None:
            raise ValueError("this batch is of latents")
        return self.pixels_BTHWC


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
        accumulate: int = 1,
        codec: ClipCodec | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """`codec` reads and fills the latent cache; without it batches are of pixels. `group`: the
        ranks that open the same loader, which takes CPU tensors; they get the same clips."""
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}")
        if not 0 <= seed < 2**63:
            raise UserError(f"seed is {seed}; expected 0 to 2^63 - 1")
        self.manifest, self.table = manifest, table
        self._cfg, self._seed = cfg, seed
        self._world, self._accumulate = world, accumulate
        self._epoch = self._step = self._micro_step = 0
        self._codec = codec
        sizes = {b: sample_shape(b, codec) for b in table.buckets}
        self._orders = _Orders(table, manifest, seed, rank, world, accumulate, sizes)
        left_out = self._orders.of(0).left_out
        if left_out:
            why = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
            _log.warning("clips of %s in no batch of epoch 0: %s", manifest.path, why)
        pyav("Reading clips")  # here rather than in every worker
        if cfg.decoder == "torchcodec":
            torchcodec("Reading clips")
        self._reader = (
            Reader(cfg, manifest, seed)
            if codec is None
            else EntryReader(cfg, manifest, seed, codec)
        )
        self._group: ReadingGroup[Any] | None = None
        if group is not None:
            self._group = ReadingGroup(group, self._reader, cfg, sizes, self._replace)
        self._slot = max(table.batch(b) * math.prod(shape) for b, shape in sizes.items())
        on_host = torch.device(device).type == "cpu"
        slots = cfg.prefetch if cfg.workers else 1
        if on_host:
            # The batch in training is a slot too, and so is the next one while it is handed over.
            slots = max(slots + 1, 3)
        # 256: what the arena may round a slot up by.
        self._arena = Arena(
            slots * (self._slot + 256),
            pinned=not on_host,
            shared=cfg.workers > 0,
            name="loader arena",
        )
        self._lane = None if on_host else Lane(device, name="loader lane")
        self._device = torch.device(device)
        self._next: Callable[[], _Ready] | None = None
        self._close_feed: Any = None
        self.replaced = 0
        """Samples of this rank, up to the last batch, whose clip was unreadable."""
        self.skipped = 0
        """Steps passed over by `skip`."""
        self.cached = self.computed = 0
        """Samples of this rank, up to the last batch, from the latent cache and for it."""
        self.bad_clips: dict[int, str] = {}
        """Manifest row to reason, of every unreadable clip met up to the last batch."""

    @property
    def steps_in_epoch(self) -> int:
        return len(self._orders.of(self._epoch))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self.check_bad_clips(self.bad_clips)
        if self._next is None:
            self._next = self._begin()
        plan, contents, samples = self._next()
        if self._group is not None:
            samples = self._group.agree(plan, contents, samples)
        pixels, latents = (None, contents) if isinstance(contents, Latents) else (contents, None)
        self._epoch, self._step = plan.epoch, plan.step_in_epoch
        self._micro_step = plan.micro_step + 1
        if self._micro_step == self._accumulate:
            self._step, self._micro_step = self._step + 1, 0
        for sample in samples:
            self.replaced += bool(sample.passed)
            self.bad_clips |= sample.passed
            if sample.found is not None:
                self.cached += sample.found.cached
                self.computed += not sample.found.cached
        return Batch(
            pixels_BTHWC=pixels,
            latents=latents,
            captions=[sample.clip.text for sample in samples],
            fps=[sample.fps for sample in samples],
            motion=[sample.clip.motion for sample in samples],
            keys=[sample.clip.row for sample in samples],
            bucket=plan.step.bucket,
            epoch=plan.epoch,
            step_in_epoch=plan.step_in_epoch,
            micro_step=plan.micro_step,
        )

    def _replace(
        self, contents: Tensor | Latents, index: int, plan: BatchPlan, sample: Sample, data: Tensor
    ) -> None:
        """Put a sample that was read again in its place in a batch."""
        if isinstance(contents, Tensor):
            contents[index].copy_(data)
            return
        assert self._codec is not None
        assert sample.found is not None
        data = data.to(self._device)
        entry = self._codec.take(data, plan.step.bucket, sample.clip.row, sample.found)
        pieces = (entry.latent_CTHW, entry.tokens_LD, entry.pooled_D, *entry.given.values())
        for whole, piece in zip(contents.tensors(), pieces, strict=True):
            whole[index].copy_(piece)

    def _begin(self) -> "Callable[[], _Ready]":
        """Start reading at the next batch; what gives one after the other."""
        feed: Feed[BatchPlan, Sample] = Feed(
            self._orders.jobs(self._epoch, self._step, self._micro_step),
            self._reader.fill,
            arena=self._arena,
            lane=self._lane,
            largest=self._slot,
            workers=self._cfg.workers,
            ahead=self._cfg.prefetch,
            timeout_s=self._cfg.clip_timeout_s,
        )
        if self._codec is None:
            self._close_feed = weakref.finalize(self, feed.close)
            return feed.next
        make, latents = partial(_with_latents, feed, self._codec), self._cfg.latents
        if latents is None or not latents.ahead:
            self._close_feed = weakref.finalize(self, feed.close)
            return make
        prefetcher = Prefetcher(make, lambda ready: ready[1].tensors(), latents.ahead, self._device)
        self._close_feed = weakref.finalize(self, _close_both, prefetcher, feed)
        return prefetcher.next

    def check_bad_clips(self, bad: dict[int, str]) -> None:
        """Raise where these are more than the recipe allows. One rank's own are checked with every
        batch; a trainer of many calls it with all of theirs, so that they stop together."""
        if len(bad) > self._cfg.bad_clip_limit:
            raise too_many_bad(bad, self._cfg.bad_clip_limit, self.manifest)

    def skip(self, steps: int) -> None:
        """Pass over the next `steps` steps without reading them; one begun counts as the first."""
        self._stop()
        self._micro_step = 0
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
            "micro_step": self._micro_step,
            "world": self._world,
            "accumulate": self._accumulate,
            "rows": len(self.manifest),
            "columns": self.manifest.digests,
            "buckets": self._hash(
                [self.table.describe(), self._cfg.crop, self._cfg.flip]
                + (["middle window"] if self._codec else [])
            ),
            "global_batch": self._hash(
                [self.table.batch(b) * self._world * self._accumulate for b in self.table.buckets]
            ),
            "replaced": self.replaced,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the saved place; refuses where the samples would not be the same ones."""
        self._check_same(state)
        self._stop()
        self._epoch, self._step = state["epoch"], state["step"]
        self._micro_step = state["micro_step"]
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
        self._next = self._close_feed = None

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
                "data.buckets (resolutions, frame counts, keep), fps_max, crop, flip or whether "
                "there are latents differ from the checkpoint's; resume with them as they were, or "
                "start a new run from the weights"
            )
        if state["global_batch"] != mine["global_batch"]:
            then = state["world"] * state["accumulate"]
            now = self._world * self._accumulate
            if then == now:
                advice = "set every data.buckets batch (or data.tokens) back to what it was"
            else:
                factor = f"{then}/{now}" if then % now else str(then // now)
                advice = (
                    f"it ran on {state['world']} data-parallel ranks x {state['accumulate']} "
                    f"micro-steps, now there are {self._world} x {self._accumulate}: set every "
                    f"data.buckets batch (or train.accumulate) to {factor} times what it was then"
                )
            raise UserError(
                "the global batch (batch x data-parallel ranks x train.accumulate) differs from "
                "the checkpoint's; " + advice
            )
        if state["micro_step"] and mine["accumulate"] != state["accumulate"]:
            raise UserError(
                f"the state was saved after micro-step {state['micro_step']} of "
                f"{state['accumulate']}, this run has {mine['accumulate']} a step; resume with "
                f"train.accumulate={state['accumulate']} or from the end of a step"
            )

    @staticmethod
    def _hash(value: object) -> str:
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


_Ready = tuple[BatchPlan, Tensor | Latents, list[Sample]]


def _with_latents(
    feed: Feed[BatchPlan, Sample], codec: ClipCodec
) -> tuple[BatchPlan, Latents, list[Sample]]:
    """The next of a feed whose slots hold, for each sample, an entry or the pixels to make one."""
    plan, contents, samples = feed.next()
    entries = []
    for sample, own in zip(samples, contents, strict=True):
        assert sample.found is not None
        entries.append(codec.take(own, plan.step.bucket, sample.clip.row, sample.found))
    latents = Latents(
        torch.stack([entry.latent_CTHW for entry in entries]),
        TextFeatures(
            torch.stack([entry.tokens_LD for entry in entries]),
            torch.stack([entry.pooled_D for entry in entries]),
        ),
        {name: torch.stack([e.given[name] for e in entries]) for name in entries[0].given},
    )
    return plan, latents, samples


def _close_both(prefetcher: Prefetcher[Any], feed: Feed[Any, Any]) -> None:
    feed.stop()
    prefetcher.close()
    feed.close()


def sample_shape(bucket: Bucket, codec: ClipCodec | None) -> tuple[int, ...]:
    """Of one sample in a slot, in bytes: a video, or room for either an entry or its video."""
    video = (bucket.frames, bucket.height, bucket.width, 3)
    if codec is None:
        return video
    room = max(math.prod(video), codec.layout(bucket).nbytes)
    return (-(-room // _ALIGN) * _ALIGN,)


class _Orders:
    """One rank's share of every epoch's steps, without end. Knows nothing of the loader, which the
    feed must not keep alive."""

    def __init__(
        self,
        table: BucketTable,
        manifest: Manifest,
        seed: int,
        rank: int,
        world: int,
        accumulate: int,
        sizes: dict[Bucket, tuple[int, ...]],
    ) -> None:
        self._sizes = sizes
        self._table, self._manifest, self._seed = table, manifest, seed
        self._rank, self._world, self._accumulate = rank, world, accumulate
        self._latest: tuple[int, EpochOrder] | None = None

    def of(self, epoch: int) -> EpochOrder:
        latest = self._latest  # another thread may put another there
        if latest is None or latest[0] != epoch:
            order = EpochOrder(
                self._table,
                self._manifest,
                seed=self._seed,
                epoch=epoch,
                shares=self._world * self._accumulate,
            )
            latest = self._latest = epoch, order
        return latest[1]

    def jobs(self, epoch: int, first_step: int, micro_step: int) -> Iterator[Job[BatchPlan]]:
        while True:
            order = self.of(epoch)
            for number in range(first_step, len(order)):
                step = order[number]
                bucket, batch = step.bucket, self._table.batch(step.bucket)
                for micro in range(micro_step, self._accumulate):
                    # Neighbours in the step belong to the same micro-step: what a rank reads then
                    # is the same whether ranks or micro-steps share it out.
                    first = (micro * self._world + self._rank) * batch
                    plan = BatchPlan(step, epoch, number, micro, first)
                    yield Job(plan, (batch, *self._sizes[bucket]))
                micro_step = 0
            epoch, first_step = epoch + 1, 0
