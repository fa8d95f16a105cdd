"""Saving: a snapshot while the caller waits, the files and the commit behind its back."""

import atexit
import functools
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vidgen.errors import UserError
from vidgen.runtime.checkpoint import commit
from vidgen.runtime.checkpoint.layout import (
    CHUNK,
    NAME,
    FileEntry,
    Manifest,
    Slice,
    TensorEntry,
    chunk_crcs,
    object_file,
    safetensors_header,
    shard_file,
)
from vidgen.runtime.checkpoint.peers import Peers, peers
from vidgen.runtime.checkpoint.shares import Share, divide, listing
from vidgen.runtime.crc32c import crc32c

T = TypeVar("T")

_log = logging.getLogger(__name__)

_WINDOW = 32 * CHUNK  # bytes checksummed, then written while still in the cache


class Saving:
    """A checkpoint on its way to the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
) -> Saving:
    """Save a step's state as root/step-N; every rank of the run calls this.

    `tensors` maps a group ("model", "ema", "optim") to named tensors. Of a DTensor each rank
    writes its own shard; what several ranks hold alike, one of them writes. `objects` maps a name
    to anything JSON takes; rank 0's count. When this returns, tensors and objects may be changed.
    Afterwards only the newest `keep_last` checkpoints stay, and multiples of `keep_every`.

    An earlier save still under way is waited for; if it failed, its error is raised here.
    """
    global _last
    previous, _last = _last, None
    if previous is not None:
        previous._settle()
    if step < 0 or keep_last < 1 or (keep_every is not None and keep_every < 1):
        raise ValueError(f"step {step}, keep_last {keep_last}, keep_every {keep_every}")
    for name in (*tensors, *objects):
        if not NAME.fullmatch(name) or object_file(name) == "manifest.json":
            raise ValueError(f"{name!r} cannot name a group or an object: a-z, 0-9 and _ may")

    everyone = peers()
    shares = divide(everyone.exchange(listing(tensors)), everyone.rank)
    texts = {name: json.dumps(value, indent=1).encode() for name, value in objects.items()}
    snapshot = _Snapshot(tensors, shares)
    job = _Job(Path(root).absolute(), step, snapshot, texts, everyone, keep_last, keep_every)
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


class _Snapshot:
    """Host copies of this rank's shares, ordered before whatever is enqueued after."""

    def __init__(self, tensors: Mapping[str, Mapping[str, Tensor]], shares: list[Share]) -> None:
        self.shares = shares
        self._copies: list[Tensor] = []
        self._sources: list[Tensor] = []  # device memory must live until the copies are made
        self._copied: list[torch.cuda.Event] = []
        devices = set()
        for share in shares:
            source = share.local(tensors)
            on_gpu = source.device.type == "cuda"
            copy = torch.empty(source.shape, dtype=source.dtype, pin_memory=on_gpu)
            copy.copy_(source, non_blocking=on_gpu)
            self._copies.append(copy)
            if on_gpu:
                self._sources.append(source)
                devices.add(source.device)
        for device in devices:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            self._copied.append(event)

    def wait(self) -> list[tuple[Share, Tensor]]:
        for event in self._copied:
            event.synchronize()
        self._sources.clear()
        return list(zip(self.shares, self._copies, strict=True))

    @property
    def size(self) -> int:
        return sum(copy.nbytes for copy in self._copies)


@dataclass(frozen=True)
class _Job:
    root: Path
    step: int
    snapshot: _Snapshot
    texts: dict[str, bytes]
    peers: Peers
    keep_last: int
    keep_every: int | None


@dataclass(frozen=True)
class _Written:
    """What a rank has made durable."""

    files: dict[str, FileEntry]
    slices: list[tuple[Share, Slice]]


def _run(job: _Job, saving: Saving) -> None:
    try:
        _write_and_commit(job)
    except Exception as error:
        saving._finish(error)
    else:
        saving._finish(None)


def _write_and_commit(job: _Job) -> None:
    first = job.peers.rank == 0
    writing = commit.writing_directory(job.root, job.step)
    _together(job, lambda: commit.begin(job.root, job.step) if first else None)
    try:
        written = _together(job, lambda: _write_files(job, writing))
        # Phase two: every rank's data is durable; one manifest makes it a checkpoint.
        reports = job.peers.exchange(written)
        _together(job, lambda: _commit(job, writing, reports) if first else None)
    except Exception:
        if first:
            commit.abandon(job.root, job.step)
        raise
    if first:
        try:
            commit.prune(job.root, job.step, job.keep_last, job.keep_every)
        except OSError as error:
            _log.warning("an old checkpoint could not be removed: %s", error)


def _together(job: _Job, work: Callable[[], T]) -> T:
    """Run this rank's part; if any rank's fails, all raise."""
    try:
        result = work()
    except Exception as error:
        if isinstance(error, OSError):
            error = commit.explain(error, job.root, job.step, job.snapshot.size)
        job.peers.agree(error)
        raise
    job.peers.agree(None)
    return result


def _write_files(job: _Job, writing: Path) -> _Written:
    files: dict[str, FileEntry] = {}
    slices: list[tuple[Share, Slice]] = []
    groups: dict[str, list[tuple[Share, Tensor]]] = {}
    for share, copy in job.snapshot.wait():
        groups.setdefault(share.group, []).append((share, copy))
    for group, members in groups.items():
        name = shard_file(group, job.peers.rank, job.peers.world)
        files[name] = _write_shard(writing / name, members, slices)
    if job.peers.rank == 0:
        for name, text in job.texts.items():
            commit.write_durably(writing / object_file(name), text)
            files[object_file(name)] = FileEntry(len(text), len(text), crc32c(text))
    commit.sync_directory(writing)
    return _Written(files, slices)


def _write_shard(
    path: Path, members: list[tuple[Share, Tensor]], slices: list[tuple[Share, Slice]]
) -> FileEntry:
    members = sorted(members, key=lambda m: (-m[1].itemsize, m[0].name))
    header, offsets = safetensors_header([(share.name, copy) for share, copy in members])
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        commit.write_all(fd, memoryview(header))
        for (share, copy), offset in zip(members, offsets, strict=True):
            data = copy.view(-1).view(torch.uint8).numpy().data
            crcs: list[int] = []
            for at in range(0, len(data), _WINDOW):
                window = data[at : at + _WINDOW]
                crcs += chunk_crcs(window)
                commit.write_all(fd, window)
            slices.append((share, Slice(path.name, offset, share.box, tuple(crcs))))
        os.fsync(fd)
    finally:
        os.close(fd)
    size = len(header) + sum(copy.nbytes for _, copy in members)
    return FileEntry(size, len(header), crc32c(header))


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
