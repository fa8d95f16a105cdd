"""What the watchdog concludes from the board, look by look; and what the board holds."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from vidgen.train.supervise.watchdog import (
    RECORD,
    Board,
    Judge,
    Record,
    Settings,
    alive,
    end_all,
    state,
)

NONE = Settings(timeout_s=10, slow_factor=None, slow_steps=1)
SLOW = Settings(timeout_s=1e9, slow_factor=3, slow_steps=2)


def rank(number: int, count: int = 5, since: float = 0.0) -> Record:
    return Record(number, os.getpid(), step=3, operation="forward", count=count, since=since)


def test_the_board_is_shared(tmp_path: Path) -> None:
    mine, other = Board(tmp_path / "board", 2), Board(tmp_path / "board", 2)
    assert mine.read() == [None, None]
    mine.write(1, rank(1))
    assert other.read() == [None, rank(1)]
    with pytest.raises(ValueError, match=f"there is room for {RECORD}"):
        mine.write(0, replace(rank(0), error="x" * RECORD))
    other.close()
    mine.close()


def test_the_rank_with_fewest_operations_hangs() -> None:
    judge = Judge(NONE)
    assert judge.look([rank(0), rank(1, count=4)], now=9) is None
    line = judge.look([rank(0), rank(1, count=4)], now=11)
    assert line == "rank 1 (step 3, forward) has not moved for 11 s; the others waited for it"
    line = judge.look([rank(0), rank(1)], now=11)
    assert line is not None
    assert "no rank of this machine has moved for 11 s" in line
    # One that still moves is not the one that hangs.
    assert Judge(NONE).look([rank(0), rank(1, count=4, since=10)], now=11) is not None
    assert Judge(NONE).look([rank(0, since=5), rank(1, count=4, since=10)], now=11) is None


def test_a_dead_rank_and_one_that_left() -> None:
    dead = replace(rank(1), pid=2**22 + 1)  # above Linux's largest
    assert not alive(dead.pid)
    assert state(os.getpid()) in "RS"
    line = Judge(NONE).look([rank(0), dead], now=1)
    assert line == "rank 1 (step 3, forward) has ended without a word"
    assert Judge(NONE).look([rank(0), replace(dead, left=True)], now=1) is None
    assert Judge(NONE).look([replace(rank(0), error="why")], now=1) == "why"


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


def test_a_report_has_every_rank(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", 2)
    board.write(0, replace(rank(0), left=True))
    board.write(1, replace(rank(1), pid=2**22 + 1))
    (tmp_path / "stacks-rank0.txt").write_text("File here\n")
    text = end_all(board, tmp_path, "why it ended").read_text()
    assert text.splitlines()[1] == "why it ended"
    assert "-- rank 0\nFile here" in text
    assert "-- rank 1\nno stack" in text
    assert "is gone" in text
    board.close()
