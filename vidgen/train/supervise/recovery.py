"""A run that ends for a reason that may pass: seen, reported, started anew, bad batches skipped.

A failed rank, a hang, a slow rank, a loss that is not finite or jumps: each ends all ranks with an
error, torchrun starts them again, and they go on from the newest complete checkpoint.
"""

import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import TextIO

from vidgen.data.loader import Batch, Loader
from vidgen.recipe.schema import RecoveryConfig
from vidgen.runtime import parallel
from vidgen.runtime.parallel import flight
from vidgen.train.supervise import watchdog
from vidgen.train.supervise.watchdog import Board, Record, Settings

Position = tuple[int, int]  # epoch, step of the epoch: the same batch on every rank


class Recovery:
    """This rank's part: it says where it is; the first rank of a machine starts the watchdog.

    Only under torchrun: where nothing starts the ranks again, ending them helps nobody.
    """

    def __init__(
        self, run_dir: Path, world: parallel.World, config: RecoveryConfig, timeout_s: float
    ) -> None:
        self._folder, self._world = run_dir / "failures", world
        # Ahead of the ranks' own watch, which cannot see the others' stacks.
        self._settings = Settings(0.9 * timeout_s, config.slow_factor, config.slow_steps)
        self._on = "TORCHELASTIC_RUN_ID" in os.environ
        self._record = Record(world.rank, os.getpid())
        self._board: Board | None = None
        self._stacks: TextIO | None = None

    def __enter__(self) -> "Recovery":
        if not self._on:
            return self
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stacks = watchdog.stacks_file(self._folder, self._world.rank).open("w")
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True, chain=False)
        ranks = int(os.environ["LOCAL_WORLD_SIZE"])
        self._board = Board(_board_path(), ranks)
        self._hear(flight.now())
        flight.listen(self._hear)
        if self._world.local_rank == 0:
            self._start_watchdog(ranks)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._board is None:
            return
        flight.listen(None)
        if error is None or isinstance(error, KeyboardInterrupt | SystemExit):
            self._write(left=True)
        else:
            self.failed(_said(self._world.rank, error))
        self._board.close()
        self._board = None
        # The stacks' file stays: a signal may still come, and must not end what is leaving.

    def completed(self, step: int, ms: float, bucket: str) -> None:
        recent = [*self._record.recent, [bucket, ms]][-watchdog.RECENT :]
        self._write(done=step, recent=recent)

    def failed(self, line: str) -> None:
        """This rank ends; its stack is written while it still has one."""
        if self._board is None:
            return
        if self._stacks is not None:
            faulthandler.dump_traceback(self._stacks, all_threads=True)
        self._write(error=line[:400])

    def _hear(self, moment: flight.Moment) -> None:
        self._write(
            step=moment.step,
            operation=moment.operation[:80],
            count=moment.count,
            since=moment.since,
        )

    def _write(self, **news: object) -> None:
        if self._board is not None:
            self._record = replace(self._record, **news)  # type: ignore[arg-type]
            self._board.write(self._world.local_rank, self._record)

    def _start_watchdog(self, ranks: int) -> None:
        settings = json.dumps(asdict(self._settings))
        words = [_board_path(), ranks, self._folder, os.getppid(), settings]
        # A session of its own: what ends the ranks must not end it before its report.
        subprocess.Popen(
            [sys.executable, watchdog.__file__, *map(str, words)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def _said(rank: int, error: BaseException) -> str:
    moment = flight.now()
    first = str(error).splitlines()[0] if str(error) else ""
    return (
        f"rank {rank} failed in step {moment.step}, {moment.operation}: "
        f"{type(error).__name__}: {first}"
    )


def _board_path() -> Path:
    """One for the ranks that one launcher started at once: they share no other secret."""
    launcher = os.getppid()
    began = Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()[19]
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    shared = Path("/dev/shm")
    folder = shared if shared.is_dir() else Path(tempfile.gettempdir())
    return folder / f"vidgen-{launcher}-{began}-{restarts}"


class Skips:
    """Batches that a run passes over: those of steps that spoilt the loss, kept with the run."""

    def __init__(self, run_dir: Path, *, known: bool = True) -> None:
        """With `known`, those that the run directory already names."""
        self._path = run_dir / "skip.json"
        self.positions: set[Position] = set()
        if known and self._path.exists():
            self.positions = {(epoch, step) for epoch, step in json.loads(self._path.read_text())}

    def add(self, positions: Iterable[Position], *, write: bool) -> None:
        """Every rank adds the same; one writes."""
        self.positions |= set(positions)
        if not write:
            return
        partial = self._path.with_suffix(".json.tmp")
        partial.write_text(json.dumps(sorted(self.positions)))
        os.replace(partial, self._path)

    def next(self, loader: Loader) -> Batch:
        """The next batch that is not among them."""
        while self.positions and position(loader) in self.positions:
            loader.skip(1)
        return next(loader)


def position(loader: Loader) -> Position:
    """Of the step whose batch the loader gives next."""
    state = loader.state_dict()
    if state["step"] == loader.steps_in_epoch:
        return state["epoch"] + 1, 0
    return state["epoch"], state["step"]
