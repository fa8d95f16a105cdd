"""One run at a time trains in a run directory, whatever the storage can lock."""

import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import vidgen
from vidgen.errors import UserError
from vidgen.train.run_dir import lock
from vidgen.train.run_dir.lock import NAME, Owner, RunLock

HOLDER = Path(__file__).with_name("hold_lock.py")
Hold = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hold]:
    """`hold(run_dir)`: another process that has locked it."""
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    monkeypatch.setattr(lock, "ENDING_S", 0.2)
    holders: list[subprocess.Popen[str]] = []

    def begin(run_dir: Path, *more: str) -> "subprocess.Popen[str]":
        holder = subprocess.Popen(
            [sys.executable, str(HOLDER), str(run_dir), *more],
            env={**os.environ, "PYTHONPATH": str(Path(vidgen.__file__).parents[1])},
            stdout=subprocess.PIPE,
            text=True,
        )
        holders.append(holder)
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        return holder

    yield begin
    for holder in holders:
        holder.kill()
        holder.wait()


def no_flock(file: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def refused(run_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        RunLock(run_dir).acquire()
    line = str(caught.value)
    assert "\n" not in line
    return line


def taken(run_dir: Path) -> None:
    held = RunLock(run_dir)
    held.acquire()
    held.check()
    held.release()


@pytest.mark.parametrize("flock", ["flock", "noflock"])
def test_a_second_run_is_refused_until_the_first_is_killed(
    hold: Hold, tmp_path: Path, flock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = hold(tmp_path, *([flock] if flock == "noflock" else []))
    if flock == "noflock":
        monkeypatch.setattr(fcntl, "flock", no_flock)
    line = refused(tmp_path)
    assert f"in use by process {holder.pid} on {socket.gethostname()}, started 2" in line
    holder.kill()
    holder.wait()
    taken(tmp_path)


def test_the_command_refuses_and_fresh_moves_nothing(
    hold: Hold,
    tmp_path: Path,
    recipe_file: Path,
    vidgen_main: Callable[..., tuple[int, str, str]],
) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text('{"step": 1}\n')
    holder = hold(run_dir)
    before = sorted(run_dir.rglob("*"))
    for more in ((), ("--fresh",)):
        code, _, said = vidgen_main("train", recipe_file, f"run_dir={run_dir}", *more)
        assert code == 2
        assert said.splitlines()[-1].startswith(f"vidgen: error: run_dir {run_dir} is in use by")
        assert f"process {holder.pid}" in said
        assert "Traceback" not in said
        assert sorted(run_dir.rglob("*")) == before
        assert not list(tmp_path.glob("run-old*"))


def _record(run_dir: Path, **changes: Any) -> Owner:
    owner = replace(Owner.this_process(), **changes)
    (run_dir / NAME).write_text(json.dumps(asdict(owner)).ljust(1024))
    return owner


def a_pid_without_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize(
    ("changes", "flock"),
    [
        ({"pid": a_pid_without_process}, True),
        ({"pid": a_pid_without_process}, False),
        ({"pid": os.getppid, "ticks": lambda: "1"}, False),  # another process has the pid now
        ({"machine": lambda: "elsewhere", "host": lambda: "node7"}, True),  # crashed: no beat
        ({"machine": lambda: "elsewhere", "host": lambda: "node7"}, False),
        ({"machine": lambda: "elsewhere", "released": lambda: True}, False),
    ],
    ids=["crash", "crash-noflock", "pid-reused", "other-host", "other-host-noflock", "released"],
)
def test_what_a_crash_leaves_does_not_lock(
    tmp_path: Path,
    changes: dict[str, Callable[[], Any]],
    flock: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    if not flock:
        monkeypatch.setattr(fcntl, "flock", no_flock)
    _record(tmp_path, **{name: make() for name, make in changes.items()})
    taken(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"pid": 1}'])
def test_a_record_that_cannot_be_read_does_not_lock(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    taken(tmp_path)


def test_locks_that_count_on_one_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """flock succeeds here, but the owner's beat on another machine goes on."""
    monkeypatch.setattr(lock, "BEAT_S", 0.2)
    owner = _record(tmp_path, machine="elsewhere", host="node7", pid=4321)
    beats = iter(range(1, 1000))
    sleep = lock.time.sleep

    def beat_meanwhile(seconds: float) -> None:
        sleep(seconds)
        record = {**asdict(owner), "beat": next(beats)}
        (tmp_path / NAME).write_text(json.dumps(record).ljust(1024))

    monkeypatch.setattr(lock.time, "sleep", beat_meanwhile)
    assert "in use by process 4321 on node7" in refused(tmp_path)


def test_storage_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", no_flock)
    held = RunLock(tmp_path)
    held.acquire()
    assert held.note is not None
    assert "without file locks (No locks available)" in held.note
    held.release()


@pytest.mark.parametrize("what", ["moved", "removed", "replaced", "taken over"])
def test_the_owner_notices_another_folder(tmp_path: Path, what: str) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    held = RunLock(run_dir)
    held.acquire()
    held.check()
    if what in ("moved", "replaced"):
        run_dir.rename(tmp_path / "elsewhere")
    if what == "removed":
        shutil.rmtree(run_dir)
    if what == "replaced":
        run_dir.mkdir()
        _record(run_dir)
    if what == "taken over":
        _record(run_dir, host="node7", pid=4321)
    with pytest.raises(UserError, match=r"not there any more|another folder|taken over"):
        held.check()
    held.release()


def test_one_process_may_train_there_again(tmp_path: Path) -> None:
    first, second = lock.lock(tmp_path), lock.lock(tmp_path)
    assert first is second
    lock.unlock(first)
    second.check()
    lock.unlock(second)
    assert json.loads((tmp_path / NAME).read_text())["released"]
