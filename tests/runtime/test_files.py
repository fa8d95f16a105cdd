"""Atomic writes: whole or not at all, durable in the right order, errors in one line."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vidgen.errors import UserError
from vidgen.runtime import files


def test_text_and_bytes_replace_the_file_and_create_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    files.write_text(path, "één\n")
    assert path.read_bytes() == "één\n".encode()
    files.write_bytes(path, b"\r\n\0")
    assert path.read_bytes() == b"\r\n\0"
    assert os.listdir(path.parent) == ["a.txt"]


def test_the_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("")
    files.write_text(tmp_path / "a", "")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "a")}
    assert len(modes) == 1


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def write() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            assert temporary.parent == tmp_path
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("durable", [True, False])
def test_the_bytes_are_durable_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        done.append("fsync folder" if name == str(tmp_path) else "fsync file")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    files.write_text(tmp_path / "a", "x", durable=durable)
    assert done == (["fsync file", "rename", "fsync folder"] if durable else ["rename"])


@pytest.mark.parametrize("operation", ["create the folder", "write", "fsync", "rename"])
def test_an_error_names_the_file_and_the_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    path = tmp_path / "folder" / "a"

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    target, name = {
        "create the folder": (Path, "mkdir"),
        "write": (Path, "write_bytes"),
        "fsync": (os, "fsync"),
        "rename": (os, "replace"),
    }[operation]
    monkeypatch.setattr(target, name, fail)
    with pytest.raises(UserError) as raised:
        files.write_text(path, "x")
    monkeypatch.undo()
    assert str(raised.value) == (
        f"{path} cannot be written: No space left on device (operation: {operation})"
    )
    assert not path.parent.exists() or not os.listdir(path.parent)


def test_an_error_about_another_file_passes_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="source"), files.replacing(tmp_path / "a"):
        (tmp_path / "source").read_bytes()


KILLED = """
import os, signal, sys
from vidgen.runtime import files
with files.replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_leaves_is_hidden_and_removed_when_old(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    users = tmp_path / ".user.tmp"
    users.write_text("not ours")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (left,) = set(tmp_path.iterdir()) - {path, users}
    assert left.name.startswith(".a.json.")
    files.remove_leftovers(tmp_path)
    assert left.exists(), "another process may be writing it now"
    os.utime(left, (0, 0))
    os.utime(users, (0, 0))
    files.remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {path, users}


def test_create_refuses_a_file_that_exists(tmp_path: Path) -> None:
    files.create(tmp_path / "a", b"x" * 100_000)
    assert (tmp_path / "a").read_bytes() == b"x" * 100_000
    with pytest.raises(FileExistsError):
        files.create(tmp_path / "a", b"y")
