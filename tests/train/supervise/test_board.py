"""The board is this user's alone, and only the launcher's children are held and signalled."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vidgen.train.supervise import board as module
from vidgen.train.supervise.board import RECORD, Board, BoardError, Processes, Record


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The private folder below a test's own, as where there is no /dev/shm."""
    whole = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda p: str(p) != "/dev/shm" and whole(p))
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"vidgen-{os.getuid()}"


def rank(number: int, **more: object) -> Record:
    return replace(Record(number, os.getpid(), step=3, operation="forward"), **more)  # type: ignore[arg-type]


def test_it_is_shared() -> None:
    mine, other = Board.open("board", 2), Board.open("board", 2)
    assert mine.read() == [None, None]
    assert mine.verdict() is None
    mine.write(rank(1, recent=[["short", 10.0]]))
    mine.publish("rank 1 failed")
    assert other.read() == [None, rank(1, recent=[["short", 10.0]])]
    assert other.verdict() == "rank 1 failed"
    with pytest.raises(ValueError, match=f"there is room for {RECORD}"):
        mine.write(rank(0, error="x" * RECORD))
    mine.remove()
    assert Board.open("board", 2).read() == [None, None]


def test_what_is_no_record_is_not_read() -> None:
    board = Board.open("board", 3)
    board._put(0, b'{"rank": 0}')
    board._put(1, b'[1, "x"')
    board._put(2, b'{"rank": 1, "pid": 1}')  # in another rank's place
    assert board.read() == [None, None, None]


def test_nobody_else_can_enter_it(folder: Path) -> None:
    Board.open("board", 1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "board").stat().st_mode) == 0o600


def test_a_folder_that_others_can_enter_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    folder.chmod(0o770)
    with pytest.raises(BoardError, match=r"mode 770.*remove it"):
        Board.open("board", 1)


def test_a_folder_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o700)
    folder.rename(folder.with_name("vidgen-12345"))
    monkeypatch.setattr(module.os, "getuid", lambda: 12345)
    with pytest.raises(BoardError, match="expected user 12345"):
        Board.open("board", 1)


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "theirs")
    with pytest.raises(BoardError, match="is not a folder of this user's"):
        Board.open("board", 1)
    folder.unlink()
    folder.mkdir(mode=0o700)
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (folder / "board").symlink_to(victim)
    with pytest.raises(BoardError, match="symbolic link"):
        Board.open("board", 1)
    (folder / "hard").hardlink_to(victim)
    with pytest.raises(BoardError, match="not this user's alone"):
        Board.open("hard", 1)
    assert victim.read_text() == "untouched"


def sleeper() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])


@pytest.fixture(params=[True, False], ids=["pidfd", "without pidfd"])
def child(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    if not request.param:  # a kernel before 5.3

        def missing(pid: int) -> int:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(module.os, "pidfd_open", missing)
    process = sleeper()
    yield process
    process.kill()
    process.wait()


def until_ended(processes: Processes, number: int) -> str:
    deadline = time.monotonic() + 20
    while number not in processes.ended and time.monotonic() < deadline:
        processes.poll(0.05)
    return processes.ended[number][1]


def test_a_child_of_the_launcher_is_signalled(child: "subprocess.Popen[bytes]") -> None:
    processes = Processes(os.getpid(), tied=False)
    processes.adopt(0, child.pid)
    assert processes.running
    processes.signal(signal.SIGSTOP)
    while not processes.stopped:
        time.sleep(0.01)
    assert processes.describe(0) == "is stopped by a signal"
    processes.signal(signal.SIGKILL)
    assert until_ended(processes, 0) == "was killed by SIGKILL"
    assert not processes.running


def test_a_foreign_process_is_never_signalled(child: "subprocess.Popen[bytes]") -> None:
    """A forged record names a process that another launcher started."""
    processes = Processes(1, tied=False)
    processes.adopt(0, child.pid)
    processes.signal(signal.SIGKILL)
    time.sleep(0.2)
    assert child.poll() is None
    assert not processes.running
    assert "not signalled" in processes.describe(0)


def test_exit_statuses() -> None:
    processes = Processes(os.getpid(), tied=False)
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    processes.adopt(0, child.pid)
    assert until_ended(processes, 0) == "ended with exit status 3"
    child.wait()
    processes.adopt(1, child.pid)  # gone, and collected
    assert processes.ended[1][1] == "has ended, with an unknown exit status"


def test_a_launcher_that_ends_is_seen(child: "subprocess.Popen[bytes]") -> None:
    processes = Processes(child.pid, tied=True)
    assert processes.poll(0) is None
    child.kill()
    deadline = time.monotonic() + 20
    while (how := processes.poll(0.05)) is None and time.monotonic() < deadline:
        pass
    assert how == f"(process {child.pid}) was killed by SIGKILL"
    child.wait()
    assert Processes(child.pid, tied=True).poll(0) is not None
    assert Processes(child.pid, tied=False).poll(0) is None
