"""No rank waits for ever: each tells the others where it is, and all end together with one line.

Every rank writes its step, operation and count of operations to the run's store now and then, from
a thread of its own, so that it does so while the main thread is stuck in a collective. When one has
not moved for as long as the timeout, or has ended, the others say which and where, and end too.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import TracebackType

import torch.distributed as dist

from vidgen.errors import UserError
from vidgen.runtime.parallel import flight

ENDED = 75  # exit status of a rank that another one's end has ended: worth another try
_PREFIX = "vidgen-watch"
_LEAVING_S = 60.0  # that rank 0 waits for the others at the end
_BEATS_MISSED = 5  # before a rank that says nothing counts as gone, once a connection broke


class RankLost(UserError):
    """Another rank ended, stood still or disagreed: the run cannot go on."""


@dataclass(frozen=True)
class Report:
    """One rank's last word."""

    rank: int
    step: int
    operation: str
    count: int
    still_s: float  # for how long it has been in this operation
    beat: int

    def __str__(self) -> str:
        return f"rank {self.rank} (step {self.step}, {self.operation})"


class Watch:
    """Watches the ranks of a run while it is open."""

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world: int,
        timeout_s: float,
        beat_s: float | None = None,
        before_end: Callable[[str], None] | None = None,
    ) -> None:
        """`before_end` hears why this process is about to end, in the watch's own thread."""
        # A connection of its own: the main thread may be waiting in the other.
        self._store: dist.Store = store.clone()  # type: ignore[attr-defined]
        self._rank, self._world, self._timeout_s = rank, world, timeout_s
        self._beat_s = min(2.0, timeout_s / 20) if beat_s is None else beat_s
        self._store.set_timeout(
            timedelta(seconds=timeout_s)
        )  # of a busy one; a dead one answers at once
        self._before_end = before_end
        self._heard: dict[int, tuple[int, float]] = {}  # rank: its last beat, and when it was new
        self._beat = 0
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="rank watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._tell()  # a rank that has been here and falls silent is missed
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        clean = error is None or isinstance(error, KeyboardInterrupt | SystemExit)
        if clean:
            self._say(f"{_PREFIX}/left/{self._rank}", "")
            if self._rank == 0:
                self._outlast_others()
        self._closing.set()
        self._thread.join()
        if error is not None and not clean and (verdict := self._verdict_on(error)) is not None:
            raise RankLost(verdict) from error

    def _outlast_others(self) -> None:
        """Rank 0 may keep the store: were it gone first, the others would take it for lost."""
        deadline = time.monotonic() + min(self._timeout_s, _LEAVING_S)
        others = [f"{_PREFIX}/left/{rank}" for rank in range(1, self._world)]
        while time.monotonic() < deadline and self._hear_failure() is None:
            if all(self._ask(key) is not None for key in others):
                return
            time.sleep(0.01)

    # The thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing.wait(self._beat_s):
            line = self._look()
            if line is not None:
                # The main thread may never come back from its collective.
                time.sleep(2 * self._beat_s)
                if not self._closing.is_set():
                    if self._before_end is not None:
                        self._before_end(line)
                    print(f"vidgen: {line}", file=sys.stderr, flush=True)
                    os._exit(ENDED)

    def _look(self) -> str | None:
        """Tell and hear; the line to end with, if this run cannot go on."""
        mine = self._tell()
        if (line := self._hear_failure()) is not None:
            return line
        if mine is None:
            return "rank 0, which keeps the run's store, has ended"
        gone = self._gone(self._timeout_s)
        if mine.still_s < self._timeout_s and not gone:
            return None
        return self._diagnose(mine, gone)

    def _tell(self) -> Report | None:
        self._beat += 1
        moment = flight.now()
        still = time.monotonic() - moment.since
        mine = Report(self._rank, moment.step, moment.operation, moment.count, still, self._beat)
        return mine if self._say(f"{_PREFIX}/{self._rank}", json.dumps(asdict(mine))) else None

    def _say(self, key: str, text: str) -> bool:
        with self._lock:
            try:
                self._store.set(key, text)
            except (RuntimeError, dist.DistError):
                return False
            return True

    def _ask(self, key: str) -> str | None:
        with self._lock:
            try:
                return self._store.get(key).decode() if self._store.check([key]) else None
            except (RuntimeError, dist.DistError):
                return None

    def _hear_failure(self) -> str | None:
        return self._ask(f"{_PREFIX}/failure")

    def _reports(self) -> list[Report]:
        texts = [self._ask(f"{_PREFIX}/{rank}") for rank in range(self._world)]
        return [Report(**json.loads(text)) for text in texts if text]

    def _gone(self, silence_s: float) -> list[Report]:
        """Ranks whose thread has said nothing for so long, and that did not take leave."""
        now, gone = time.monotonic(), []
        for report in self._reports():
            beat, since = self._heard.get(report.rank, (-1, now))
            if beat != report.beat:
                self._heard[report.rank] = report.beat, now
                continue
            silent = now - since > silence_s and report.rank != self._rank
            if silent and self._ask(f"{_PREFIX}/left/{report.rank}") is None:
                gone.append(report)
        return gone

    # The line -----------------------------------------------------------------------------------

    def _diagnose(self, mine: Report, gone: list[Report]) -> str:
        """Who holds the others up: one that is gone, else the one that has come least far."""
        if gone:
            line = f"{_named(gone)}, when last heard of, ended or froze; {mine} waited for it"
        else:
            reports = self._reports() or [mine]
            least = min(report.count for report in reports)
            behind = [report for report in reports if report.count == least]
            if len(behind) == len(reports):
                line = (
                    f"all {len(reports)} ranks have waited {mine.still_s:.0f} s in step "
                    f"{mine.step}, {mine.operation}: the network, or data of different shapes"
                )
            else:
                still = max(report.still_s for report in behind)
                line = f"{_named(behind)} has not moved for {still:.0f} s; the others waited for it"
        return self._publish(line)

    def _publish(self, line: str) -> str:
        """The first line that any rank publishes is everyone's."""
        with self._lock:
            try:
                kept = self._store.compare_set(f"{_PREFIX}/failure", "", line).decode()
            except (RuntimeError, dist.DistError):
                return line
        return kept or line

    def _verdict_on(self, error: BaseException) -> str | None:
        """A failed collective is another rank's fault more often than not: find out whose."""
        mine = self._tell()
        if not _is_communication(error):
            first = str(error).splitlines()[0] if str(error) else ""
            moment = flight.now()
            self._publish(
                f"rank {self._rank} failed in step {moment.step}, {moment.operation}: "
                f"{type(error).__name__}: {first}"
            )
            return None
        silence = _BEATS_MISSED * self._beat_s  # a broken connection makes a silent rank suspect
        deadline = time.monotonic() + 2 * silence
        while time.monotonic() < deadline:
            if (line := self._hear_failure()) is not None:
                return line
            if mine is None:
                return f"rank 0, which keeps the run's store, has ended; {flight.now().operation}"
            if gone := self._gone(silence):
                return self._diagnose(mine, gone)
            time.sleep(self._beat_s)
            mine = self._tell()
        moment = flight.now()
        first = str(error).splitlines()[0]
        return self._publish(
            f"rank {self._rank} failed in step {moment.step}, {moment.operation}: {first}"
        )


def _is_communication(error: BaseException) -> bool:
    """Gloo raises plain RuntimeErrors; a store's end and NCCL's have a type of their own."""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "nccl", "connection closed", "connection reset", "socket", "timed out")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def _named(reports: list[Report]) -> str:
    return " and ".join(str(report) for report in reports)
