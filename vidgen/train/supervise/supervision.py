"""A rank's part of hang detection: it shows where it is, and ends when the run cannot go on.

The first rank of each machine starts the watchdog (watchdog.py), which decides. A thread of every
rank gives signs of life and carries the verdict; one rank of a machine brings in the records of
the other machines' ranks, through the store that the ranks met at.
"""

import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TextIO

import torch.distributed as dist

from vidgen.errors import UserError
from vidgen.runtime.parallel import World, flight_recorder
from vidgen.train.supervise import watchdog
from vidgen.train.supervise.board import (
    RECENT,
    Board,
    BoardError,
    Record,
    proc_stat,
    process_state,
)
from vidgen.train.supervise.watchdog import Settings

ENDED = 75  # exit status of a rank that ends because another one did: worth another try
_PREFIX = "vidgen-supervision"
_LEAVING_S = 60.0  # that rank 0 waits for the others at the end
_LOST_BEATS = 3  # without an answer of the store before it counts as lost


class RankLost(UserError):
    """Another rank ended, hung or failed: the run cannot go on."""


class Supervision:
    """While open, a rank that hangs, ends or fails ends all ranks with one line that names it.

    It is on for several ranks, and for one under torchrun, which starts it again.
    """

    def __init__(self, world: World, folder: Path | None, settings: Settings) -> None:
        """`folder` receives the reports; without one there are only the lines."""
        self._world, self._folder = world, folder
        beat = min(settings.beat_s, settings.timeout_s / 20)
        self._settings = replace(settings, beat_s=beat)
        self._torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        self._on = self._torchrun or world.world > 1
        self._launcher = os.getppid()
        here = int(os.environ["LOCAL_WORLD_SIZE"]) if self._torchrun else 1
        first = world.rank - (world.local_rank if self._torchrun else 0)
        self._local = range(first, first + here)
        self._foreign = [rank for rank in range(world.world) if rank not in self._local]
        self._record = Record(world.rank, os.getpid())
        self._heard: dict[int, tuple[int, float]] = {}  # rank: its last beat, and when it was new
        self._failing = 0  # beats in which the store did not answer
        self._lock, self._talking = threading.RLock(), threading.Lock()
        self._closing, self._leaving = threading.Event(), False
        self._board: Board | None = None
        self._stacks: TextIO | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._store: dist.Store | None = None
        self._thread = threading.Thread(target=self._run, name="supervision", daemon=True)

    def __enter__(self) -> "Supervision":
        if not self._on:
            return self
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._stacks = watchdog.stacks_file(self._folder, self._world.rank).open("w")
            faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True, chain=False)
        if self._world.store is not None:
            # A connection of its own: the main thread may be waiting in the other.
            self._store = self._world.store.clone()  # type: ignore[attr-defined]
            self._store.set_timeout(timedelta(seconds=self._settings.timeout_s))
        try:
            self._board = Board.open(self._board_name(), self._world.world)
        except BoardError as error:
            raise UserError(str(error)) from None
        flight_recorder.listen(self._hear)
        flight_recorder.note("start")  # what came before does not count as a hang
        if self._world.rank == self._local[0]:
            self._start_watchdog()
        self._sync()  # a rank that has been here and falls silent is missed
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._board is None:
            return
        flight_recorder.listen(None)
        self._leaving = True
        verdict = None
        if error is None or isinstance(error, KeyboardInterrupt | SystemExit):
            self._write(left=True)
            self._sync()
            if self._world.rank == 0:
                self._outlast_others()
        else:
            verdict = self._fail(error)
        self._closing.set()
        self._thread.join()
        self._board.close()
        self._board = None
        # The stacks' file stays open: a signal may still come, and must not end this process.
        if verdict is not None:
            raise RankLost(verdict) from error

    def completed(self, step: int, ms: float, bucket: str) -> None:
        self._write(done=step, recent=[*self._record.recent, [bucket, ms]][-RECENT:])

    # The record ---------------------------------------------------------------------------------

    def _hear(self, moment: flight_recorder.Moment) -> None:
        self._write(
            step=moment.step,
            operation=moment.operation[:80],
            count=moment.count,
            since=moment.since,
            storage=moment.storage,
        )

    def _write(self, **news: object) -> None:
        with self._lock:
            self._record = replace(self._record, **news)  # type: ignore[arg-type]
            if self._board is not None:
                self._board.write(self._record)

    def _fail(self, error: BaseException) -> str | None:
        """Record an error; of a broken connection, wait to learn which rank failed first."""
        broken = _is_communication(error)
        if self._stacks is not None:
            faulthandler.dump_traceback(self._stacks, all_threads=True)
        moment = flight_recorder.now()
        first = str(error).splitlines()[0] if str(error) else ""
        line = (
            f"rank {self._world.rank} failed in step {moment.step}, {moment.operation}: "
            f"{type(error).__name__}: {first}"
        )
        self._write(error=line[:400], failed_at=time.monotonic(), broken_connection=broken)
        self._sync()
        if not broken:
            return None
        patience = watchdog.SETTLE_S + 2 * watchdog.SILENT_BEATS * self._settings.beat_s + 5
        deadline = time.monotonic() + patience
        assert self._board is not None
        while time.monotonic() < deadline:
            if (verdict := self._board.verdict()) is not None:
                return verdict
            time.sleep(0.02)
        return None

    # The thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        orphaned: float | None = None
        while not self._closing.wait(self._settings.beat_s):
            self._write(beat=self._record.beat + 1)
            self._sync()
            self._check_watchdog()
            assert self._board is not None
            verdict = self._board.verdict()
            if self._torchrun and os.getppid() != self._launcher:
                orphaned = orphaned or time.monotonic()
                if time.monotonic() - orphaned > watchdog.GRACE_S:
                    verdict = verdict or "the launcher has ended"
            if verdict is not None and not self._leaving:
                # The main thread may never return from its collective.
                self._closing.wait(max(2 * self._settings.beat_s, 2.0))
                if not self._closing.is_set() and not self._leaving:
                    self._sync()  # the other machines hear of the verdict
                    os._exit(ENDED)

    def _check_watchdog(self) -> None:
        assert self._board is not None
        if self._watchdog is None or (status := self._watchdog.poll()) is None:
            return
        self._watchdog = None
        if self._board.verdict() is None and not self._leaving:
            print(
                f"vidgen: the watchdog ended with status {status}; hangs are no longer detected",
                file=sys.stderr,
                flush=True,
            )

    def _sync(self) -> None:
        """Tell the store of this rank and its machine's verdict; learn of the others'."""
        if self._store is None or self._board is None:
            return
        with self._talking:
            try:
                self._exchange(self._store, self._board)
                self._failing = 0
            except (RuntimeError, dist.DistError):
                self._failing += 1
        if self._failing >= _LOST_BEATS and not self._record.error and not self._record.left:
            line = f"rank {self._world.rank} lost the run's store: rank 0 or the launcher has ended"
            self._write(error=line, failed_at=time.monotonic(), broken_connection=True)

    def _exchange(self, store: dist.Store, board: Board) -> None:
        store.set(f"{_PREFIX}/{self._world.rank}", _sent(self._record))
        verdict, failure = board.verdict(), f"{_PREFIX}/failure"
        if verdict is not None:
            store.compare_set(failure, "", verdict)  # the first one is everyone's
        elif store.check([failure]):
            board.publish(store.get(failure).decode())
        if not self._foreign or not self._carries(board):
            return
        keys = [f"{_PREFIX}/{rank}" for rank in self._foreign]
        if store.check(keys):
            for rank, text in zip(self._foreign, store.multi_get(keys), strict=True):
                if (record := self._received(rank, text)) is not None:
                    board.write(record)

    def _carries(self, board: Board) -> bool:
        """Whether this is the first rank of the machine that can bring in the others' records."""
        for record in board.read()[self._local[0] : self._world.rank]:
            if record is not None and process_state(record.pid) not in ("gone", "Z", "X", "T", "t"):
                return False
        return True

    def _received(self, rank: int, text: bytes) -> Record | None:
        now = time.monotonic()
        try:
            found = Record(**json.loads(text))
        except (ValueError, TypeError):
            return None
        beat, heard = self._heard.get(rank, (-1, now))
        if beat != found.beat:
            heard = now
            self._heard[rank] = found.beat, heard
        since, failed_at = (now - age for age in (found.since, found.failed_at))
        # Of a silent rank the age in its last record does not grow by itself.
        since -= now - heard
        return replace(
            found, rank=rank, pid=0, since=since, failed_at=failed_at, heard=heard, seen=now
        )

    def _outlast_others(self) -> None:
        """Rank 0 may keep the store: were it gone first, the others would take it for lost."""
        if self._store is None or self._board is None:
            return
        deadline = time.monotonic() + min(self._settings.timeout_s, _LEAVING_S)
        keys = [f"{_PREFIX}/{rank}" for rank in range(1, self._world.world)]
        while time.monotonic() < deadline and self._board.verdict() is None:
            try:
                with self._talking:
                    texts = self._store.multi_get(keys) if self._store.check(keys) else []
            except (RuntimeError, dist.DistError):
                return
            if texts and all(json.loads(text)["left"] for text in texts):
                return
            time.sleep(0.01)

    # The watchdog -------------------------------------------------------------------------------

    def _board_name(self) -> str:
        """Shared by the ranks that one launcher started at once; else of this process alone."""
        shared = self._launcher if self._torchrun else os.getpid()
        fields = proc_stat(shared)
        began = fields[19] if fields else "0"
        space = os.stat("/proc/self/ns/pid").st_ino
        return f"{space}-{shared}-{began}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"

    def _start_watchdog(self) -> None:
        words = [
            *(self._board_name(), self._world.world, len(self._local), self._folder or ""),
            *(self._launcher, "tied" if self._torchrun else "untied"),
            json.dumps(asdict(self._settings)),
        ]
        # A session of its own: what ends the ranks must not end it before its report.
        self._watchdog = subprocess.Popen(
            [sys.executable, watchdog.__file__, *map(str, words)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def _sent(record: Record) -> str:
    """A record as other machines read it: ages in place of times, as clocks differ."""
    now = time.monotonic()
    return json.dumps(
        asdict(replace(record, since=now - record.since, failed_at=now - record.failed_at))
    )


def _is_communication(error: BaseException) -> bool:
    """Gloo raises plain RuntimeErrors; a store's end and NCCL's have a type of their own."""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "nccl", "connection closed", "connection reset", "socket", "timed out")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
