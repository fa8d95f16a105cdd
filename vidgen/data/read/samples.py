"""How one sample of a step is read: its clip's window and cut, and what replaces a bad clip."""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vidgen.data.config import DataConfig
from vidgen.data.index.buckets import frame_interval
from vidgen.data.index.manifest import Clip, Manifest
from vidgen.data.index.order import Step, sample_draws
from vidgen.data.read.video import ClipRequest
from vidgen.errors import UserError
from vidgen.runtime.loader.feed import Filling
from vidgen.runtime.loader.processes import Lost

if TYPE_CHECKING:
    from vidgen.data.cache.codec import ClipCodec, Found

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchPlan:
    """One rank's share of one micro-step."""

    step: Step
    epoch: int
    step_in_epoch: int
    micro_step: int
    first: int  # its first position in the step


@dataclass(frozen=True)
class Sample:
    clip: Clip
    fps: float  # of the frames as read
    passed: dict[int, str]  # rows tried before it, and why they cannot be read
    found: "Found | None" = None  # where there is a latent cache


class Reader:
    """Knows nothing of the loader, which the thread it runs in must not keep alive."""

    def __init__(self, cfg: DataConfig, manifest: Manifest, seed: int) -> None:
        self._cfg, self._manifest, self._seed = cfg, manifest, seed
        self._bad: dict[int, str] = {}
        self._kept: dict[ClipRequest, np.ndarray] = {}
        self._room = cfg.cache_bytes

    @property
    def bad(self) -> dict[int, str]:
        """Manifest row to reason, of every clip found unreadable so far."""
        return dict(self._bad)

    def learn(self, bad: Mapping[int, str]) -> None:
        """Clips that another rank found unreadable count as such here."""
        for row, reason in bad.items():
            if row not in self._bad:
                self._skip_clip(self._manifest[row], f"on another rank: {reason}")

    def choice(self, plan: BatchPlan, sample: int) -> int | None:
        """The row that is read for a sample, as far as is known; None where there is none."""
        rows = plan.step.candidates(plan.first + sample)
        return next((row for row in rows if row not in self._bad), None)

    def fill(self, plan: BatchPlan, sample: int, out: np.ndarray) -> Filling[Sample]:
        """`out` is (T, H, W, 3)."""
        passed: dict[int, str] = {}
        for clip in self._candidates(plan, sample, passed):
            request, fps = self._request(clip, plan.epoch, out.shape)
            kept = self._kept.get(request)
            if kept is not None:
                out[:] = kept
                return Sample(clip, fps, passed)
            answer = yield request
            if answer is None:
                self._keep(request, out)
                return Sample(clip, fps, passed)
            reason = answer.reason if isinstance(answer, Lost) else answer
            passed[clip.row] = self._skip_clip(clip, reason)
        raise none_can_be_read(plan, passed)

    def _candidates(self, plan: BatchPlan, sample: int, passed: dict[int, str]) -> Iterator[Clip]:
        """The clip itself, then those that replace it. What is known to be bad is skipped, and
        reported as if this sample had found it out: what was read before must not show."""
        for row in plan.step.candidates(plan.first + sample):
            if len(passed) > self._cfg.bad_clip_limit:
                raise too_many_bad(passed, self._cfg.bad_clip_limit, self._manifest)
            if row in self._bad:
                passed[row] = self._bad[row]
            else:
                yield self._manifest[row]

    def _request(self, clip: Clip, epoch: int, shape: tuple[int, ...]) -> tuple[ClipRequest, float]:
        """And the rate of its frames."""
        draws = sample_draws(self._seed, epoch, clip.row)
        interval = int(frame_interval(np.array(clip.fps), self._cfg.fps_max))
        frames, height, width = shape[:3]
        span = (frames - 1) * interval + 1
        start = math.floor(draws.start * (clip.num_frames - span + 1))
        request = ClipRequest(
            path=str(clip.path),
            frame_indices=range(start, start + span, interval),
            size=(height, width),
            crop_at=(draws.top, draws.left) if self._cfg.crop == "random" else (0.5, 0.5),
            flip=self._cfg.flip and draws.flip < 0.5,
            expect=(clip.height, clip.width),
            decoder=self._cfg.decoder,
        )
        return request, clip.fps / interval

    def _keep(self, request: ClipRequest, pixels: np.ndarray) -> None:
        if pixels.nbytes <= self._room and request not in self._kept:
            self._room -= pixels.nbytes
            self._kept[request] = pixels.copy()

    def _skip_clip(self, clip: Clip, reason: str) -> str:
        """The reason that counts, which is the first."""
        if clip.row not in self._bad:
            self._bad[clip.row] = reason
            _log.warning("clip %s (row %d) is skipped: %s", clip.path, clip.row, reason)
        return self._bad[clip.row]


class EntryReader(Reader):
    """Reads entries of the latent cache, and the pixels of clips it has none of."""

    def __init__(self, cfg: DataConfig, manifest: Manifest, seed: int, codec: "ClipCodec") -> None:
        super().__init__(cfg, manifest, seed)
        self._codec = codec

    def fill(self, plan: BatchPlan, sample: int, out: np.ndarray) -> Filling[Sample]:
        """`out` is bytes, enough for either."""
        bucket, passed = plan.step.bucket, dict[int, str]()
        for clip in self._candidates(plan, sample, passed):
            found = yield from self._codec.read(clip, bucket)
            if not isinstance(found, str):
                return Sample(clip, clip.fps / found.fields["interval"], passed, found)
            passed[clip.row] = self._skip_clip(clip, found)
        raise none_can_be_read(plan, passed)


def none_can_be_read(plan: BatchPlan, passed: dict[int, str]) -> UserError:
    return UserError(
        f"none of the {len(plan.step.queue)} clips of bucket {plan.step.bucket} can be read; "
        f"the last reason: {list(passed.values())[-1]}"
    )


def too_many_bad(bad: dict[int, str], limit: int, manifest: Manifest) -> UserError:
    row, reason = list(bad.items())[-1]
    return UserError(
        f"{len(bad)} clips cannot be read, more than data.bad_clip_limit={limit}; the last is "
        f"{manifest[row].path}: {reason}"
    )
