"""Saving: a snapshot while the caller waits, the files and the commit behind its back."""

import atexit
import errno
import functools
import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from vidgen.errors import UserError
from vidgen.runtime.checkpoint import commit, transfer
from vidgen.runtime.checkpoint.jobs import OutputFile
from vidgen.runtime.checkpoint.layout import (
    NAME,
    FileEntry,
    Manifest,
    Slice,
    TensorEntry,
    object_file,
)
from vidgen.runtime.checkpoint.peers import Peers, peers
from vidgen.runtime.checkpoint.plan import FilePlan, plan
from vidgen.runtime.checkpoint.shares import Share, held, shares_to_write
from vidgen.runtime.checkpoint.snapshot import Snapshot
from vidgen.runtime.crc32c import crc32c
from vidgen.runtime.files import create, sync_directory

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveSummary:
    """What a save took on this rank."""

    bytes: int
    waited_s: float  # for the save before, which was still being written
    blocked_s: float  # for the copy of the state
    written_s: float  # from then on, to the commit: training went on
    method: str

    def __str__(self) -> str:
        waited = (
            f", waited {self.waited_s:.2f} s for the one before" if self.waited_s > 0.01 else ""
        )
        return (
            f"{self.bytes / 1e9:.2f} GB in {self.written_s:.2f} s by {self.method}; "
            f"training stood still for {self.blocked_s:.3f} s{waited}"
        )


class Saving:
    """A checkpoint on its way to the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary: SaveSummary | None = None  # once it is committed
        self._finished = threading.Event()
        self._error: Exception | None = None
        self._told = False  # whether a caller has learnt how it went

    def done(self) -> bool:
        """Whether the checkpoint is committed or has failed; `wait` tells which."""
        return self._finished.is_set()

    def wait(self) -> Path:
        """The committed checkpoint's directory, or the error that kept it from being one."""
        self._finished.wait()
        self._told = True
        if self._error is not None:
            raise self._error
        return self.path

    def failure(self) -> Exception | None:
        """Why it failed, once it is done; None of one that is committed."""
        self._told = self._told or self.done()
        return self._error

    def _settle(self) -> None:
        """Wait, and raise an error that nobody has been told of."""
        self._finished.wait()
        if not self._told:
            self.wait()

    def _finish(self, error: Exception | None) -> None:
        self._error = error
        self._finished.set()


_last: Saving | None = None  # at most one checkpoint is being written at a time


@functools.cache
def _report_at_exit() -> None:
    """Register, once, the report of a failure that no `wait` and no later save has raised."""

    def report() -> None:
        if _last is not None and _last.done() and not _last._told and _last._error is not None:
            _log.error("%s was not saved: %s", _last.path, _last._error)

    atexit.register(report)


def save(
    root: str | os.PathLike[str],
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    objects: Mapping[str, Any],
    *,
    keep_last: int = 3,
    keep_every: int | None = None,
    background: bool = True,
    timeout_s: float | None = None,
    guard: Callable[[], None] | None = None,
) -> Saving:
    """Save a step's state as root/step-N; every rank of the run calls this.

    `tensors` maps a group ("model", "ema", "optim") to named tensors. Of a DTensor each rank
    writes its own shard; what several ranks hold alike, one of them writes. `objects` maps a name
    to anything JSON takes; rank 0's count. When this returns, tensors and objects may be changed.
    Afterwards only the newest `keep_last` checkpoints stay, and multiples of `keep_every`.

    A rank waits at most `timeout_s` for one system call of the storage (an hour by default), and a
    minute longer for another rank that does.

    `guard` is called before anything is written; what it raises on any rank fails the save.

    An earlier save still under way is waited for; if it failed, its error is raised here.
    """
    global _last
    started = time.perf_counter()
    previous, _last = _last, None
    everyone = peers(timeout_s or transfer.TIMEOUT_S)
    if previous is not None:
        _wait_turn(previous, everyone.rank)
    if step < 0 or keep_last < 1 or (keep_every is not None and keep_every < 1):
        raise ValueError(f"step {step}, keep_last {keep_last}, keep_every {keep_every}")
    for name in (*tensors, *objects):
        if not NAME.fullmatch(name) or object_file(name) == "manifest.json":
            raise ValueError(f"{name!r} cannot name a group or an object: a-z, 0-9 and _ may")

    turn = time.perf_counter()
    sources = held(tensors)
    snapshot = Snapshot(_planned(list(sources), everyone), sources)
    texts = {name: json.dumps(value, indent=1).encode() for name, value in objects.items()}
    times = (turn - started, time.perf_counter() - turn)
    job = _Job(
        Path(root).absolute(),
        step,
        snapshot,
        texts,
        everyone,
        keep_last,
        keep_every,
        times,
        timeout_s,
        guard,
    )
    saving = Saving(commit.step_directory(job.root, step))
    if background:
        # Not a daemon: a checkpoint begun before the interpreter's end is finished.
        _report_at_exit()
        threading.Thread(target=_run, args=(job, saving), name=f"checkpoint-{step}").start()
        _last = saving
    else:
        _run(job, saving)
        saving.wait()
    return saving


_waits = 0  # saves that found the one before unfinished


def _wait_turn(previous: Saving, rank: int) -> None:
    """Until an earlier save is done: its memory is needed. An error nobody has heard is raised."""
    global _waits
    if not previous.done():
        _waits += 1
        began = time.perf_counter()
        previous._finished.wait()
        _log.log(
            logging.WARNING if _waits == 1 and rank == 0 else logging.INFO,
            "waited %.2f s for %s to be written (so far %d saves had to wait): "
            "checkpoints are due faster than the disk takes them",
            time.perf_counter() - began,
            previous.path,
            _waits,
        )
    previous._settle()


@dataclass(frozen=True)
class _Division:
    shares: list[Share]  # what this rank holds
    peers: Peers
    plan: FilePlan


_division: _Division | None = None  # the last one


def _planned(shares: list[Share], everyone: Peers) -> FilePlan:
    """The files this rank writes. It is worked out again only when some rank holds other shares."""
    global _division
    known = _division
    same = known is not None and known.peers is everyone and known.shares == shares
    if all(everyone.exchange(same)) and known is not None:
        return known.plan
    mine = shares_to_write(everyone.exchange(shares), everyone.rank)
    _division = _Division(shares, everyone, plan(mine, everyone.rank, everyone.world))
    return _division.plan


@dataclass(frozen=True)
class _Job:
    root: Path
    step: int
    snapshot: Snapshot
    texts: dict[str, bytes]
    peers: Peers
    keep_last: int
    keep_every: int | None
    times: tuple[float, float]  # seconds the caller waited for its turn, and for the snapshot
    timeout_s: float | None  # for one system call
    guard: Callable[[], None] | None


@dataclass(frozen=True)
class _Written:
    """What a rank has made durable."""

    files: dict[str, FileEntry]
    slices: list[tuple[Share, Slice]]


def _run(job: _Job, saving: Saving) -> None:
    began = time.perf_counter()
    failed: Exception | None = None
    try:
        method = _write_and_commit(job)
        seconds = time.perf_counter() - began
        saving.summary = SaveSummary(job.snapshot.plan.size, *job.times, seconds, str(method))
        _log.info("%s: %s", saving.path, saving.summary)
    except Exception as error:
        failed = error
        _clear_frames(error)
    try:
        if failed is not None and _stuck(failed):
            job.snapshot.lose()
        else:
            job.snapshot.release()
    except Exception as error:
        failed = failed or error
    saving._finish(failed)


def _clear_frames(error: BaseException | None) -> None:
    """What was being written is in variables of the error's frames, and of those of the errors it
    came from: they would keep the memory from being lent again."""
    seen: set[int] = set()
    left = [error]
    while left:
        found = left.pop()
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            traceback.clear_frames(found.__traceback__)
            left += [found.__cause__, found.__context__]


def _stuck(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.ETIMEDOUT


def _write_and_commit(job: _Job) -> transfer.Method:
    first = job.peers.rank == 0
    writing = commit.writing_directory(job.root, job.step)
    _together(job, lambda: _begin(job))
    try:
        method = _together(job, lambda: transfer.method(writing))
        written = _together(job, lambda: _write_files(job, writing, method))
        # Phase two: every rank's data is durable; one manifest makes it a checkpoint.
        reports = job.peers.exchange(written)
        _together(job, lambda: _commit(job, writing, reports) if first else None)
    except Exception as error:
        if first and not _stuck(error):  # else to remove it would be stuck as well
            commit.abandon(job.root, job.step)
        raise
    if first:
        try:
            commit.prune(job.root, job.step, job.keep_last, job.keep_every)
        except OSError as error:
            _log.warning("an old checkpoint could not be removed: %s", error)
    return method


def _begin(job: _Job) -> None:
    if job.guard is not None:
        job.guard()
    if job.peers.rank == 0:
        commit.begin(job.root, job.step)


def _together(job: _Job, work: Callable[[], T]) -> T:
    """Run this rank's part; if any rank's fails, all raise."""
    try:
        result = work()
    except Exception as error:
        if isinstance(error, OSError):
            error = commit.explain(error, job.root, job.step, job.snapshot.plan.size)
        job.peers.agree(error)
        raise
    job.peers.agree(None)
    return result


def _write_files(job: _Job, writing: Path, method: transfer.Method) -> _Written:
    files: dict[str, FileEntry] = {}
    slices: list[tuple[Share, Slice]] = []
    job.snapshot.wait()
    planned = job.snapshot.plan.files
    outputs = [
        OutputFile(writing / f.name, job.snapshot.data(f), f.size, f.checked) for f in planned
    ]
    crcs, _ = transfer.write_files(outputs, method, job.timeout_s)
    for file, found in zip(planned, crcs, strict=True):
        files[file.name], parts = file.entries(found)
        slices += parts
    if job.peers.rank == 0:
        for name, text in job.texts.items():
            create(writing / object_file(name), text)
            files[object_file(name)] = FileEntry(len(text), len(text), crc32c(text))
    sync_directory(writing)
    return _Written(files, slices)


def _commit(job: _Job, writing: Path, reports: list[_Written]) -> None:
    files: dict[str, FileEntry] = {}
    tensors: dict[str, dict[str, TensorEntry]] = {}
    for report in reports:
        files.update(report.files)
        for share, part in report.slices:
            entries = tensors.setdefault(share.group, {})
            others = entries[share.name].slices if share.name in entries else ()
            entries[share.name] = TensorEntry(share.dtype, share.shape, (*others, part))
    for rank, report in enumerate(reports):
        for name, entry in report.files.items():
            path = writing / name
            if not path.is_file() or path.stat().st_size != entry.size:
                raise UserError(
                    f"rank {rank} wrote {path}, but rank 0 does not find its {entry.size} bytes "
                    "there; checkpoints need a directory that all ranks share"
                )
    manifest = Manifest(job.step, job.peers.world, files, tensors, tuple(job.texts))
    commit.publish(job.root, job.step, manifest.to_json())
