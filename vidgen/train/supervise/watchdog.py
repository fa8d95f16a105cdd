"""A process beside the ranks of a machine: sees that one hangs, is slow or gone, and ends them all.

It runs from its own file and imports nothing of the package: it starts in milliseconds, holds no
GPU and no lock of the processes that it watches. They write where they are to a file in shared
memory; it reads, judges, and leaves a report with the stack of every rank. The launcher then
starts them anew.
"""

import contextlib
import json
import mmap
import os
import signal
import statistics
import sys
import time
from collections import defaultdict, deque
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RECORD = 4096  # bytes of a rank's record on the board
POLL_S = 0.2
GRACE_S = 5.0  # for ranks to end themselves once one has failed
HISTORY = 64  # steps of a bucket that a slow one is told by
AT_LEAST = 4  # of them, before any is called slow
RECENT = 8  # steps a record tells of: small ones take less time than a poll


@dataclass(frozen=True)
class Record:
    """One rank's last word; times are time.monotonic(), one clock for a whole machine."""

    rank: int
    pid: int
    step: int = 0  # the one under way
    operation: str = "start"
    count: int = 0
    since: float = 0.0
    done: int = 0  # steps completed here
    recent: list[list[Any]] = field(default_factory=list)  # [bucket, ms] of the last ones
    error: str = ""
    left: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} (step {self.step}, {self.operation})"


@dataclass(frozen=True)
class Settings:
    timeout_s: float
    slow_factor: float | None
    slow_steps: int


class Board:
    """A file in shared memory with a record for each rank of this machine."""

    def __init__(self, path: str | Path, ranks: int) -> None:
        self.path, self.ranks = Path(path), ranks
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(handle, ranks * RECORD)
            self._map = mmap.mmap(handle, ranks * RECORD)
        finally:
            os.close(handle)

    def write(self, place: int, record: Record) -> None:
        text = json.dumps(asdict(record)).encode()
        if len(text) > RECORD:
            raise ValueError(f"a record of {len(text)} bytes; there is room for {RECORD}")
        self._map[place * RECORD : (place + 1) * RECORD] = text.ljust(RECORD)

    def read(self) -> list[Record | None]:
        """None for a rank that has not written yet, or is writing at this moment."""
        found: list[Record | None] = []
        for place in range(self.ranks):
            text = self._map[place * RECORD : (place + 1) * RECORD]
            try:
                found.append(Record(**json.loads(text)))
            except (ValueError, TypeError):
                found.append(None)
        return found

    def close(self) -> None:
        self._map.close()


@dataclass
class Judge:
    """What the records of a machine's ranks say, look by look."""

    settings: Settings
    _times: defaultdict[str, deque[float]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=HISTORY))
    )
    _done: int = 0
    _slow: int = 0
    _slowest: str = ""
    _last: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def look(self, records: list[Record], now: float) -> str | None:
        """The line to end with, if this run cannot go on as it does."""
        for record in records:
            if record.error:
                return record.error
        here = [record for record in records if not record.left]
        for record in here:
            if not alive(record.pid):
                return f"{record} has ended without a word"
        if not here:
            return None
        return self._hang(here, now) or self._slowdown(here)

    def _hang(self, records: list[Record], now: float) -> str | None:
        still = max(now - record.since for record in records)
        if still < self.settings.timeout_s:
            return None
        least = min(record.count for record in records)
        behind = [record for record in records if record.count == least]
        names = " and ".join(str(record) for record in behind)
        if len(behind) == len(records):
            return f"{names}: no rank of this machine has moved for {still:.0f} s"
        longest = max(now - record.since for record in behind)
        return f"{names} has not moved for {longest:.0f} s; the others waited for it"

    def _slowdown(self, records: list[Record]) -> str | None:
        if len(records) > 1:
            least = min(record.count for record in records)
            behind = [record.rank for record in records if record.count == least]
            if len(behind) == 1:
                self._last[behind[0]] += 1
        first = records[0]
        if self.settings.slow_factor is None or first.done == self._done:
            return None
        unseen = min(first.done - self._done, len(first.recent))
        self._done = first.done
        for bucket, ms in first.recent[len(first.recent) - unseen :]:
            self._step(bucket, ms, self.settings.slow_factor)
        if self._slow < self.settings.slow_steps:
            return None
        line = f"{self._slow} slow steps in a row, the last {self._slowest}"
        if self._last:
            who = max(self._last, key=lambda rank: self._last[rank])
            line += f"; the others waited for rank {who}"
        return line

    def _step(self, bucket: str, ms: float, slow_factor: float) -> None:
        times = self._times[bucket]
        usual = statistics.median(times) if len(times) >= AT_LEAST else None
        if usual is None or ms < slow_factor * usual:
            times.append(ms)
            self._slow = 0
            self._last.clear()
        else:
            self._slow += 1
            self._slowest = f"{ms:.0f} ms, {ms / usual:.1f} times what {bucket} takes"


def alive(pid: int) -> bool:
    return state(pid) not in ("gone", "Z", "X")


def state(pid: int) -> str:
    """R, S, D, T (stopped), Z (ended) as Linux names them; "gone"."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "gone"
    return text.rpartition(")")[2].split()[0]


def stacks_file(folder: Path, rank: int) -> Path:
    return folder / f"stacks-rank{rank}.txt"


def end_all(board: Board, folder: Path, line: str) -> Path:
    """Every rank's stack into a report, then no rank is left."""
    records = [record for record in board.read() if record is not None]
    living = [record for record in records if not record.left and alive(record.pid)]
    for record in living:
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGUSR1)  # faulthandler writes its stacks
    time.sleep(1.0)  # it answers at once if it answers at all
    report = _write(folder, line, records)
    deadline = time.monotonic() + (GRACE_S if any(record.error for record in records) else 0)
    while time.monotonic() < deadline and any(alive(record.pid) for record in living):
        time.sleep(POLL_S)
    for record in living:
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGKILL)
    return report


def _write(folder: Path, line: str, records: list[Record]) -> Path:
    now, moment = time.monotonic(), datetime.now(UTC)
    parts = [f"{moment.isoformat(timespec='seconds')} {os.uname().nodename}", line, ""]
    parts += [
        f"{record}: for {now - record.since:.1f} s, {record.count} operations, process "
        f"{record.pid} is {state(record.pid)}" + (f"; {record.error}" if record.error else "")
        for record in records
    ]
    for record in records:
        path = stacks_file(folder, record.rank)
        text = path.read_text(errors="replace").strip() if path.exists() else ""
        parts += ["", f"-- rank {record.rank}", text or "no stack: it did not answer"]
    first = min(record.rank for record in records)
    report = folder / f"{moment:%Y%m%d-%H%M%S}-rank{first}.txt"
    report.write_text("\n".join(parts) + "\n")
    return report


def main(arguments: list[str]) -> None:
    path, ranks, folder, launcher, text = arguments
    board, judge = Board(path, int(ranks)), Judge(Settings(**json.loads(text)))
    latest: list[Record | None] = [None] * board.ranks
    try:
        while alive(int(launcher)):
            latest = [new or old for new, old in zip(board.read(), latest, strict=True)]
            known = [record for record in latest if record is not None]
            if len(known) == board.ranks and all(record.left for record in known):
                return
            line = judge.look(known, time.monotonic())
            if line is not None:
                report = end_all(board, Path(folder), line)
                print(f"vidgen: {line}; report: {report}", file=sys.stderr, flush=True)
                return
            time.sleep(POLL_S)
    finally:
        board.path.unlink(missing_ok=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the ranks to answer
    main(sys.argv[1:])
