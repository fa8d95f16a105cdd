"""What the watchdog concludes from the ranks' records and the ends of their processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from vidgen.train.supervise import watchdog
from vidgen.train.supervise.board import Board, Processes, Record, process_state
from vidgen.train.supervise.watchdog import Judge, Settings, end_all

NONE = Settings(timeout_s=10, storage_timeout_s=100, beat_s=1)
SLOW = Settings(timeout_s=1e9, slow_factor=3, slow_steps=2)


def rank(number: int, count: int = 5, since: float = 0.0, **more: object) -> Record:
    record = Record(number, os.getpid(), step=3, operation="forward", count=count, since=since)
    return replace(record, **more)  # type: ignore[arg-type]


def settled(judge: Judge, records: list[Record], now: float = 1.0, **more: object) -> str | None:
    """What it concludes when nothing more becomes known."""
    assert judge.look(records, now, **more) is None  # type: ignore[arg-type]
    return judge.look(records, now + 20, **more)  # type: ignore[arg-type]


def test_the_rank_with_fewest_operations_hangs() -> None:
    judge = Judge(NONE)
    assert judge.look([rank(0), rank(1, count=4)], now=9) is None
    line = judge.look([rank(0), rank(1, count=4)], now=11)
    assert line == "rank 1 (step 3, forward) has not moved for 11 s; the others waited for it"
    line = judge.look([rank(0), rank(1)], now=11)
    assert line is not None
    assert "no rank has moved for 11 s" in line
    # One that still moves is not the one that hangs.
    assert Judge(NONE).look([rank(0), rank(1, count=4, since=10)], now=11) is not None
    assert Judge(NONE).look([rank(0, since=5), rank(1, count=4, since=10)], now=11) is None


def test_a_stopped_rank_is_named_although_it_has_come_as_far_as_the_others() -> None:
    records = [rank(0, since=1), rank(1)]
    assert Judge(NONE).look(records, now=9, stopped=frozenset({1})) is None
    assert Judge(NONE).look(records, now=12, stopped=frozenset({1})) == (
        "rank 1 (step 3, forward) is stopped by a signal and has not moved for 12 s"
    )


def test_storage_has_a_limit_of_its_own() -> None:
    waiting = [rank(0), rank(1, count=4, storage=True)]
    assert Judge(NONE).look(waiting, now=99) is None
    assert Judge(NONE).look(waiting, now=101) == (
        "rank 1 (step 3, forward): storage has not answered for 101 s; the others waited for it"
    )
    stopped = Judge(NONE).look(waiting, now=11, stopped=frozenset({1}))
    assert stopped is not None
    assert "is stopped by a signal" in stopped
    # All in a save; the one that waits for storage is ahead of the one that hangs.
    assert Judge(NONE).look([rank(0, storage=True), rank(1, storage=True)], now=99) is None
    line = Judge(NONE).look([rank(0, count=4), rank(1, storage=True)], now=11)
    assert line == "rank 0 (step 3, forward) has not moved for 11 s; the others waited for it"


def test_a_wait_for_storage_does_not_count_against_those_who_waited() -> None:
    judge = Judge(NONE)
    assert judge.look([rank(0), rank(1, count=4, storage=True)], now=50) is None
    # The slow rank has gone on; the other one is about to.
    after = [rank(0), rank(1, count=6, since=51.0)]
    assert judge.look(after, now=51.2) is None
    line = judge.look(after, now=62)
    assert line == "rank 0 (step 3, forward) has not moved for 62 s; the others waited for it"


def test_the_first_to_fail_is_named_by_time_and_status() -> None:
    killed = {1: (7.0, "was killed by SIGKILL")}
    broken = rank(0, error="rank 0: connection closed", failed_at=6.9, broken_connection=True)
    # The broken connection became known first, and is the consequence.
    judge = Judge(NONE)
    assert judge.look([broken, rank(1)], 7.0) is None
    assert judge.look([broken, rank(1)], 7.2, killed) is None
    assert judge.look([broken, rank(1)], 7.7, killed) == (
        "rank 1 (step 3, forward) was killed by SIGKILL"
    )
    errors = [rank(r, error=f"rank {r}: nan", failed_at=9.0 - r) for r in range(3)]
    assert settled(Judge(NONE), errors) == "rank 2: nan"
    later = {0: (9.0, "ended with exit status 1"), 2: (8.0, "was killed by SIGSEGV")}
    records = [rank(0), rank(1), rank(2)]
    assert settled(Judge(NONE), records, ended=later) == (
        "rank 2 (step 3, forward) was killed by SIGSEGV"
    )
    # Of a rank that left, or has said why, the end is no news.
    assert Judge(NONE).failures([rank(0, left=True)], {0: (1.0, "ended")}) == []
    assert len(Judge(NONE).failures([rank(0, error="why")], {0: (1.0, "ended")})) == 1


def test_broken_connections_alone_are_told_after_a_while() -> None:
    broken = rank(0, error="rank 0: connection closed", failed_at=1.0, broken_connection=True)
    judge = Judge(NONE)
    assert judge.look([broken, rank(1)], 1.0) is None
    assert judge.look([broken, rank(1)], 6.0) is None
    assert judge.look([broken, rank(1)], 7.0) == "rank 0: connection closed"
    line = settled(Judge(NONE), [broken, rank(1)], stopped=frozenset({1}))
    assert line == "rank 1 (step 3, forward) is stopped by a signal; rank 0: connection closed"


def test_a_silent_rank_of_another_machine() -> None:
    far = rank(1, since=15, pid=0, heard=1.0, seen=7.0)
    here = rank(0, since=15)
    assert Judge(NONE).look([here, far], now=16) is None
    broken = rank(0, error="rank 0: connection closed", failed_at=1.0, broken_connection=True)
    assert Judge(NONE).look([broken, far], now=16) == (
        "rank 1 (step 3, forward) ended or froze: last heard from 6 s ago"
    )
    gone = Judge(NONE).look([here, replace(far, seen=12.0)], now=16)
    assert gone == "rank 1 (step 3, forward) ended or froze: last heard from 11 s ago"
    assert Judge(NONE).look([here, replace(far, seen=12.0, left=True)], now=16) is None


def test_slow_steps_are_told_by_their_bucket() -> None:
    judge = Judge(SLOW)

    def step(done: int, ms: float, bucket: str, behind: int | None = None) -> str | None:
        records = [
            replace(rank(r, count=10 * done - (r == behind)), done=done, recent=[[bucket, ms]])
            for r in range(3)
        ]
        first = judge.look(records, now=0)
        return first or judge.look(records, now=0)  # a look in which nothing is new

    for done in range(1, 9):
        assert step(done, 100 if done % 2 else 900, "short" if done % 2 else "long") is None
    assert step(9, 280, "short") is None  # under three times
    assert step(10, 950, "short") is None  # one alone
    assert step(11, 110, "short") is None
    assert step(12, 2800, "long", behind=2) is None
    line = step(13, 1000, "short", behind=2)
    assert line is not None
    assert "2 slow steps in a row, the last 1000 ms" in line
    assert line.endswith("the others waited for rank 2")


def test_steps_quicker_than_a_look_are_all_seen() -> None:
    judge = Judge(SLOW)
    quick: list[list[object]] = [["short", 10.0]] * 4
    assert judge.look([replace(rank(0), done=4, recent=quick)], now=0) is None
    slow: list[list[object]] = [["short", 50.0], ["short", 60.0]]
    line = judge.look([replace(rank(0), done=6, recent=[*quick, *slow])], now=0)
    assert line == "2 slow steps in a row, the last 60 ms, 6.0 times what short takes"
    # One in between was as usual.
    between = [*quick, slow[0], quick[0], slow[1]]
    assert Judge(SLOW).look([replace(rank(0), done=7, recent=between)], now=0) is None


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    opened = Board.open(f"test-{os.getpid()}-{tmp_path.name}", 2)
    yield opened
    opened.remove()


Start = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    children = []

    def begin(code: str) -> "subprocess.Popen[bytes]":
        children.append(subprocess.Popen([sys.executable, "-c", code]))
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        child.wait()


SLEEPS = "import time; time.sleep(100)"


def test_a_report_has_every_rank(tmp_path: Path, board: Board, start: Start) -> None:
    child = start("import faulthandler, signal, sys, time\n"
        f"faulthandler.register(signal.SIGUSR1, open({str(tmp_path / 'stacks-rank1.txt')!r}, 'w'))"
        "\nprint(flush=True)\ntime.sleep(100)")  # fmt: skip
    time.sleep(1)
    board.write(rank(0, pid=0))
    board.write(rank(1, pid=child.pid))
    processes = Processes(os.getpid(), tied=False)
    processes.adopt(1, child.pid)
    report = end_all(board, processes, tmp_path, "why it ended", grace_s=0)
    assert report is not None
    text = report.read_text()
    assert text.splitlines()[1] == "why it ended"
    assert "is on another machine" in text
    assert "-- rank 1\n" in text
    assert "<string>" in text.partition("-- rank 1")[2]  # its stack
    assert "-- rank 0" not in text
    assert board.verdict() == "why it ended"
    assert child.wait(20) == -signal.SIGKILL


def watching(board: Board, folder: Path, launcher: int, tied: str) -> "subprocess.Popen[str]":
    settings = json.dumps(asdict(replace(NONE, timeout_s=1e9)))
    words = [board.name, "2", "2", str(folder), str(launcher), tied, settings]
    return subprocess.Popen(
        [sys.executable, watchdog.__file__, *words], stderr=subprocess.PIPE, text=True
    )


def until_held(process: "subprocess.Popen[str]", count: int) -> None:
    """Until the watchdog holds `count` processes by pidfd."""
    folder = f"/proc/{process.pid}/fd"
    held: list[str] = []
    deadline = time.monotonic() + 60
    while len(held) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        with contextlib.suppress(OSError):
            links = [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]
            held = [link for link in links if "pidfd" in link]


def test_the_process_names_the_killed_rank_and_ends_the_other(
    tmp_path: Path, board: Board, start: Start
) -> None:
    """And leaves a process alone that a forged record names."""
    children = [start(SLEEPS) for _ in range(2)]
    for number, child in enumerate(children):
        board.write(rank(number, pid=child.pid))
    process = watching(board, tmp_path, os.getpid(), "untied")
    until_held(process, 2)
    children[1].kill()
    _, said = process.communicate(timeout=30)
    assert "rank 1 (step 3, forward) was killed by SIGKILL" in said
    assert children[0].wait(20) in (-signal.SIGKILL, -signal.SIGUSR1)
    (report,) = tmp_path.glob("2*.txt")
    assert "failure: rank 1" in report.read_text()


def test_a_forged_record_has_nobody_signalled(tmp_path: Path, board: Board, start: Start) -> None:
    foreign, launcher = start(SLEEPS), start(SLEEPS)
    for number in range(2):
        board.write(rank(number, pid=foreign.pid, error="forged", failed_at=1.0))
    process = watching(board, tmp_path, launcher.pid, "tied")
    _, said = process.communicate(timeout=30)
    assert "forged" in said
    assert foreign.poll() is None


LAUNCHER = """
import os, subprocess, sys, time
ranks = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) for _ in "01"]
open({pids!r}, "w").write(f"{{ranks[0].pid}} {{ranks[1].pid}} .")
while not os.path.exists({go!r}):
    time.sleep(0.01)
ranks[1].kill()
"""


@pytest.mark.parametrize(
    ("killed", "said_why"),
    [
        (True, "the launcher (process {}) was killed by SIGKILL; its ranks end too"),
        # It gives up at once because of a rank, which is the one to name.
        (False, "rank 1 (step 3, forward) was killed by SIGKILL"),
    ],
)
def test_ranks_end_with_their_launcher(
    killed: bool, said_why: str, tmp_path: Path, board: Board, start: Start
) -> None:
    pids, go = tmp_path / "pids", tmp_path / "go"
    launcher = start(LAUNCHER.format(pids=str(pids), go=str(go)))
    while not (pids.exists() and pids.read_text().endswith(".")):
        time.sleep(0.05)
    ranks = [int(pid) for pid in pids.read_text().split()[:2]]
    for number, pid in enumerate(ranks):
        board.write(rank(number, pid=pid))
    process = watching(board, tmp_path, launcher.pid, "tied")
    until_held(process, 3)
    if killed:
        launcher.kill()
    else:
        go.touch()
    _, said = process.communicate(timeout=60)
    assert said_why.format(launcher.pid) in said
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(
        process_state(pid) not in ("gone", "Z") for pid in ranks
    ):
        time.sleep(0.05)
    assert all(process_state(pid) in ("gone", "Z") for pid in ranks)
