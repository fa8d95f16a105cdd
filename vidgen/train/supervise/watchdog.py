"""The watchdog: a process per machine that detects ranks that hang, slow down or end.

It runs as a separate script that imports nothing of the package, so it starts in milliseconds and
shares no GPU or lock with the processes it watches. Ranks write their progress to a board in shared
memory (supervision.py), including the records of other machines. The watchdog names the first rank
to fail, writes a report with every rank's stack, and ends all ranks of its machine.
"""

import contextlib
import json
import os
import signal
import statistics
import sys
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

if __name__ == "__main__":  # from this file's folder: importing the package takes seconds
    sys.path.insert(0, str(Path(__file__).parent))
    from board import Board, Processes, Record  # type: ignore[import-not-found]
else:
    from vidgen.train.supervise.board import Board, Processes, Record

POLL_S = 0.1
GRACE_S = 5.0  # time for ranks to end themselves after the verdict
SETTLE_S = 0.5  # time after a failure for an earlier one to become known
HISTORY = 64  # steps of a bucket in its median
AT_LEAST = 4  # steps needed before any counts as slow
SILENT_BEATS = 5  # without a heartbeat from another machine's rank, after a broken connection


@dataclass(frozen=True)
class Settings:
    timeout_s: float  # without progress
    storage_timeout_s: float = 3600.0  # while a rank waits for storage
    beat_s: float = 2.0  # between the heartbeats of ranks
    slow_factor: float | None = None
    slow_steps: int = 5


@dataclass(frozen=True)
class Failure:
    """One rank's end, as far as it is known on this machine."""

    rank: int
    at: float  # time.monotonic()
    line: str
    consequence: bool = False  # a broken connection: another rank failed first


@dataclass
class Judge:
    """Decides from the records and ended processes whether the run can continue."""

    settings: Settings
    _settling: float | None = None  # when the first failure became known
    _times: defaultdict[str, deque[float]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=HISTORY))
    )
    _done: int = 0
    _slow: int = 0
    _slowest: str = ""
    _storage_until: float = 0.0  # when a rank was last seen to wait for storage
    _last: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def look(
        self,
        records: list[Record],
        now: float,
        ended: dict[int, tuple[float, str]] | None = None,
        stopped: frozenset[int] = frozenset(),
    ) -> str | None:
        """Return why the run ends, or None. `ended` maps ranks to the time and status of their
        processes, `stopped` are the ranks whose process is stopped by a signal."""
        found = self.failures(records, ended or {})
        if found:
            return self._first(found, records, now, stopped)
        here = [record for record in records if not record.left]
        if not here:
            return None
        silent = [r for r in here if r.seen - r.heard > self.settings.timeout_s]
        if silent:
            return _silence(silent)
        return self._hang(here, now, stopped) or self._slowdown(here)

    @staticmethod
    def failures(records: list[Record], ended: dict[int, tuple[float, str]]) -> list[Failure]:
        """Failures in the order in which they happened."""
        found = [
            Failure(r.rank, r.failed_at, r.error, r.broken_connection) for r in records if r.error
        ]
        known = {record.rank: record for record in records}
        for rank, (at, status) in ended.items():
            record = known[rank]
            if not record.left and not record.error:
                found.append(Failure(rank, at, f"{record} {status}"))
        return sorted(found, key=lambda failure: failure.at)

    def _first(
        self, found: list[Failure], records: list[Record], now: float, stopped: frozenset[int]
    ) -> str | None:
        """The first failure not caused by another; it may become known after its consequences."""
        if self._settling is None:
            self._settling = now
        waited = now - self._settling
        causes = [failure for failure in found if not failure.consequence]
        if causes:
            return causes[0].line if waited >= SETTLE_S else None
        patience = SETTLE_S + SILENT_BEATS * self.settings.beat_s
        silent = [r for r in records if not r.left and r.seen - r.heard > patience - SETTLE_S]
        if silent:
            return _silence(silent)
        if waited < patience:
            return None
        if held := [record for record in records if record.rank in stopped]:
            return f"{_names(held)} is stopped by a signal; {found[0].line}"
        return found[0].line

    def _hang(self, records: list[Record], now: float, stopped: frozenset[int]) -> str | None:
        least = min(record.count for record in records)
        behind = [record for record in records if record.count == least]
        held = [record for record in records if record.rank in stopped]
        storage = any(record.storage for record in behind)
        if storage and not held:
            self._storage_until = now

        def within_limit(record: Record) -> bool:
            """If any rank waits for storage, those waiting for it share its limit, and their own
            begins when that wait ends; a stopped process does not wait for storage."""
            if (record.storage or storage) and not held:
                return now - record.since < self.settings.storage_timeout_s
            since = record.since if held else max(record.since, self._storage_until)
            return now - since < self.settings.timeout_s

        if all(map(within_limit, records)):
            return None
        still = max(now - record.since for record in held or behind)
        if held:
            return f"{_names(held)} is stopped by a signal and has not moved for {still:.0f} s"
        beats = SILENT_BEATS * self.settings.beat_s
        if silent := [record for record in behind if record.seen - record.heard > beats]:
            return _silence(silent)
        what = "storage has not answered" if storage else "has not moved"
        if len(behind) < len(records):
            who = f"{_names(behind)}: {what}" if storage else f"{_names(behind)} {what}"
            return f"{who} for {still:.0f} s; the others waited for it"
        if storage:
            return f"{_names(behind)}: {what} for {still:.0f} s"
        return (
            f"{_names(behind)}: no rank has moved for {still:.0f} s: the network, or data of "
            "different shapes"
        )

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


def _names(records: list[Record]) -> str:
    return " and ".join(str(record) for record in records)


def _silence(records: list[Record]) -> str:
    longest = max(record.seen - record.heard for record in records)
    return f"{_names(records)} ended or froze: last heard from {longest:.0f} s ago"


def stacks_file(folder: Path, rank: int) -> Path:
    return folder / f"stacks-rank{rank}.txt"


def end_all(
    board: Board, processes: Processes, folder: Path | None, line: str, grace_s: float = GRACE_S
) -> Path | None:
    """Write every rank's stack into a report, publish the verdict, and end this machine's ranks."""
    records = [record for record in board.read() if record is not None]
    if folder is not None:
        processes.signal(signal.SIGUSR1)  # faulthandler writes the stacks
        time.sleep(1.0)  # a responsive process answers at once
    processes.poll(0)
    report = None if folder is None else _write(folder, line, records, processes)
    where = "" if report is None else f"; report: {report}"
    print(f"vidgen: {line}{where}", file=sys.stderr, flush=True)
    board.publish(line)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and processes.running:
        processes.poll(POLL_S)
    processes.signal(signal.SIGKILL)
    return report


def _write(folder: Path, line: str, records: list[Record], processes: Processes) -> Path:
    now, moment = time.monotonic(), datetime.now(UTC)
    parts = [f"{moment.isoformat(timespec='seconds')} {os.uname().nodename}", line, ""]
    for failure in Judge.failures(records, processes.ended):
        kind = "broken connection" if failure.consequence else "failure"
        parts.append(f"{now - failure.at:.2f} s before: {kind}: {failure.line}")
    for record in records:
        state = processes.describe(record.rank) if record.pid else "is on another machine"
        parts.append(
            f"{record}: for {now - record.since:.1f} s, {record.count} operations, process "
            f"{record.pid or ''} {state}"
        )
    for record in records:
        if record.pid:
            path = stacks_file(folder, record.rank)
            text = path.read_text(errors="replace").strip() if path.exists() else ""
            parts += ["", f"-- rank {record.rank}", text or "no stack: it did not answer"]
    first = min((record.rank for record in records if record.pid), default=0)
    report = folder / f"{moment:%Y%m%d-%H%M%S}-rank{first}.txt"
    report.write_text("\n".join(parts) + "\n")
    return report


def watch(
    board: Board, processes: Processes, folder: Path | None, settings: Settings, local: int
) -> None:
    """Run until all of this machine's ranks have left, or the run cannot continue."""
    judge = Judge(settings)
    latest: list[Record | None] = [None] * board.ranks
    while True:
        launcher = processes.poll(POLL_S)
        latest = [new or old for new, old in zip(board.read(), latest, strict=True)]
        known = [record for record in latest if record is not None]
        own = [record for record in known if record.pid]
        for record in own:
            processes.adopt(record.rank, record.pid)
        if len(own) == local and all(record.left for record in own):
            return
        if launcher is not None:
            # A launcher may exit because of a rank before that failure is settled.
            causes = [f for f in Judge.failures(known, processes.ended) if not f.consequence]
            if causes or not all(r.left or r.rank in processes.ended for r in own):
                own_line = f"the launcher {launcher}; its ranks end too"
                end_all(board, processes, folder, causes[0].line if causes else own_line, 0.0)
            return
        line = board.verdict() or judge.look(
            known, time.monotonic(), processes.ended, processes.stopped
        )
        if line is not None:
            end_all(board, processes, folder, line)
            return


def main(arguments: list[str]) -> None:
    name, ranks, local, folder, launcher, tied, text = arguments
    board = Board.open(name, int(ranks))
    processes = Processes(int(launcher), tied=tied == "tied")
    try:
        where = Path(folder) if folder else None
        watch(board, processes, where, Settings(**json.loads(text)), int(local))
    finally:
        with contextlib.suppress(OSError):
            board.remove()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the ranks handle Ctrl-C
    main(sys.argv[1:])
