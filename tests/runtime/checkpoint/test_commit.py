"""The commit protocol under crashes: killed at every call, or without power at every call."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from vidgen.runtime import checkpoint
from vidgen.runtime.checkpoint import commit, transfer
from vidgen.runtime.checkpoint.layout import MANIFEST, PAGE

READABLE = ".safetensors"
CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir")


def save(root: Path, step: int, value: float | None = None) -> None:
    tensors = {"model": {"w": torch.full((4,), float(step if value is None else value))}}
    checkpoint.save(root, step, tensors, {"trainer": {"step": step}}, keep_last=2, background=False)


def check(root: Path, at_least: int) -> None:
    """What is visible is whole, and the newest is no older than what was committed before."""
    assert checkpoint.steps(root), "no checkpoint left"
    for step, path in commit.complete(root).items():
        assert checkpoint.verify(path) == []
        assert checkpoint.read_objects(path) == {"trainer": {"step": step}}
    newest = checkpoint.latest(root)
    assert newest is not None
    assert checkpoint.steps(root)[-1] >= at_least


def recover(root: Path) -> None:
    """The next save goes through and leaves only checkpoints."""
    save(root, 9)
    assert checkpoint.steps(root)[-1] == 9
    assert [n for n in os.listdir(root) if not n.startswith("step-")] == []
    assert len(os.listdir(root)) == 2
    check(root, 9)


def _preceded(
    name: str, real: Callable[..., Any], action: Callable[[str], None]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        action(name)
        if name == "write" and len(args[1]) > 1:
            # Half of it first, so that a crash can fall inside a write.
            return real(args[0], args[1][: len(args[1]) // 2])
        return real(*args, **kwargs)

    return call


@contextmanager
def before_each_call(
    action: Callable[[str], None], synced: Callable[[str], None] = lambda path: None
) -> Iterator[None]:
    """`action(name)` runs before each call of the operating system that changes the disk; then
    `synced(path)` before a call that makes what is in a file durable."""

    def hook(name: str, path: str, offset: int, size: int) -> int:
        if name == "read" or (name == "open" and path.endswith(READABLE) and Path(path).exists()):
            return size
        action(name)
        if name == "fsync":
            synced(path)
        # In halves, so that a crash can fall inside a write.
        return PAGE * (size // PAGE // 2) or size

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "hook", hook)
        for name in CALLS:
            patch.setattr(os, name, _preceded(name, getattr(os, name), action))
        yield


SCENARIOS: dict[str, tuple[list[int], int]] = {
    # steps already there, the step being saved
    "the third of two kept": ([1, 2], 3),
    "one that is there already": ([1, 2], 2),
    "the first after a crash": ([1], 4),
}


# Every scenario with the ring, and the first one in every other way.
RUNS = [
    pytest.param(way, name, id=f"{name}, {way}")
    for way in ("ring", "threads", "cached", "plain")
    for name in SCENARIOS
    if way == "ring" or name == "the third of two kept"
]


def prepare(root: Path, name: str) -> int:
    there, step = SCENARIOS[name]
    for earlier in there:
        save(root, earlier)
    if name == "the first after a crash":
        shutil.copytree(root / "step-000000001", root / ".step-000000002.writing")
        os.unlink(root / ".step-000000002.writing" / MANIFEST)
        shutil.copytree(root / "step-000000001", root / ".step-000000000.removing")
    return step


@pytest.mark.parametrize(("way", "name"), RUNS, indirect=["way"])
def test_killed_at_any_call_the_newest_complete_checkpoint_loads(
    tmp_path: Path, name: str, way: str
) -> None:
    start = tmp_path / "start"
    step = prepare(start, name)
    newest = checkpoint.steps(start)[-1]
    killed, at = True, 0
    while killed:
        root = tmp_path / str(at)
        shutil.copytree(start, root)
        child = os.fork()
        if child == 0:
            calls = 0

            def die(call: str, last: int = at) -> None:
                nonlocal calls
                calls += 1
                if calls > last:
                    os.kill(os.getpid(), signal.SIGKILL)

            try:
                with before_each_call(die):
                    save(root, step)
            finally:
                os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        check(root, newest)
        if not killed:
            assert checkpoint.steps(root)[-1] == step
        recover(root)
        shutil.rmtree(root)
        at += 1
    assert at > 20  # the protocol has that many calls: all were tried


@dataclass
class Disk:
    """What would be on the disk after a power cut: files and names as they were last fsynced."""

    root: Path
    files: dict[int, bytes] = field(default_factory=dict)  # by inode
    names: dict[int, dict[str, int]] = field(default_factory=dict)
    held: list[int] = field(default_factory=list)  # descriptors that keep inodes from being reused

    def __post_init__(self) -> None:
        for folder, _, files in os.walk(self.root):
            self.sync(os.open(folder, os.O_RDONLY))
            for file in files:
                self.sync(os.open(Path(folder) / file, os.O_RDONLY))

    def sync(self, fd: int) -> None:
        self.held.append(fd)
        inode = os.fstat(fd).st_ino
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.is_dir():
            self.names[inode] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self.files[inode] = path.read_bytes()

    def after_power_cut(self, target: Path, root_synced: bool, folders_synced: bool) -> None:
        """Names in the root, or in the folders, as last fsynced, or else as they are now."""
        target.mkdir()
        for name, inode in self._entries(self.root, root_synced).items():
            (target / name).mkdir()
            inside = self.names.get(inode, {})
            if not folders_synced:
                # A folder that only the synced root still names may have been emptied by now.
                now = [e for e in os.scandir(self.root) if e.inode() == inode]
                inside = self._entries(Path(now[0]), False) if now else {}
            for file, number in inside.items():
                (target / name / file).write_bytes(self.files.get(number, b"never written"))

    def _entries(self, folder: Path, synced: bool) -> dict[str, int]:
        if synced:
            return self.names[folder.stat().st_ino]
        return {entry.name: entry.inode() for entry in os.scandir(folder)}

    def close(self) -> None:
        for fd in self.held:
            os.close(fd)


@pytest.mark.parametrize(("way", "name"), RUNS, indirect=["way"])
def test_without_power_at_any_call_the_newest_complete_checkpoint_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    root = tmp_path / "root"
    step = prepare(root, name)
    newest = checkpoint.steps(root)[-1]
    disk = Disk(root)
    real_fsync = os.fsync
    cuts = 0
    looking = False

    def fsync(fd: int) -> None:
        real_fsync(fd)
        disk.sync(os.dup(fd))

    def cut(call: str, at_least: int = newest) -> None:
        nonlocal cuts, looking
        if looking:
            return
        looking = True
        for root_synced in (True, False):
            for folders_synced in (True, False):
                after = tmp_path / "after"
                disk.after_power_cut(after, root_synced, folders_synced)
                check(after, at_least)
                shutil.rmtree(after)
        cuts += 1
        looking = False

    monkeypatch.setattr(os, "fsync", fsync)
    with before_each_call(cut, lambda path: disk.sync(os.open(path, os.O_RDONLY))):
        save(root, step)
    assert cuts > 20
    cut("after", max(newest, step))  # once save returns, the checkpoint has survived any power cut
    disk.close()


def test_what_a_crash_left_between_two_renames_still_counts(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    os.replace(tmp_path / "step-000000002", tmp_path / ".step-000000002.replaced")
    assert checkpoint.steps(tmp_path) == [1, 2]
    assert checkpoint.latest(tmp_path) == tmp_path / ".step-000000002.replaced"
    save(tmp_path, 3)
    assert checkpoint.steps(tmp_path) == [2, 3]
    assert sorted(os.listdir(tmp_path)) == ["step-000000002", "step-000000003"]


def test_a_directory_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nowhere") is None
    assert checkpoint.latest(tmp_path) is None
    (tmp_path / "step-000000007").mkdir()
    (tmp_path / "step-8").write_text("")
    assert checkpoint.steps(tmp_path) == []
    save(tmp_path, 7)  # takes its place
    assert checkpoint.steps(tmp_path) == [7]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    save(tmp_path, 999_999_999)
    save(tmp_path, 1_000_000_000)
    assert checkpoint.steps(tmp_path) == [999_999_999, 1_000_000_000]


def test_an_old_checkpoint_that_cannot_be_removed_does_not_undo_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(OSError(5, "stuck")))
        save(tmp_path, 3)
    assert checkpoint.steps(tmp_path) == [2, 3]
    assert "an old checkpoint could not be removed" in caplog.text
    recover(tmp_path)


def test_every_step_is_durable_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    root = tmp_path / "root"
    save(root, 1)
    save(root, 2)
    events: list[str] = []

    def name(path: Any) -> str:
        path = Path(path)
        return "root" if path == root else str(path.relative_to(root)).replace("0" * 8, "")

    real_fsync, real_replace = os.fsync, os.replace

    def fsync(fd: int) -> None:
        events.append(f"sync {name(os.readlink(f'/proc/self/fd/{fd}'))}")
        real_fsync(fd)

    def replace(source: Any, target: Any) -> None:
        events.append(f"{name(source)} -> {name(target)}")
        real_replace(source, target)

    def hook(call: str, path: str, offset: int, size: int) -> int:
        if call == "fsync" and way != "plain":  # which syncs through os, and is seen there
            events.append(f"sync {name(path)}")
        return size

    real_rmtree = shutil.rmtree

    def rmtree(path: Any) -> None:
        events.append(f"remove {name(path)}")
        real_rmtree(path)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(transfer, "hook", hook)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    save(root, 3)
    assert events == [
        "sync .step-3.writing/model-00000-of-00001.safetensors",
        "sync .step-3.writing/trainer.json",
        "sync .step-3.writing",
        "sync .step-3.writing/manifest.json.tmp",
        ".step-3.writing/manifest.json.tmp -> .step-3.writing/manifest.json",
        "sync .step-3.writing",
        ".step-3.writing -> step-3",
        "sync root",
        "step-1 -> .step-1.removing",
        "sync root",
        "remove .step-1.removing",
    ]


def test_a_run_its_checkpoints_or_a_step_mean_the_same_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert checkpoint.find_step(run) is None
    for step in (5, 10):
        save(run / "checkpoints", step)
    newest = run / "checkpoints" / "step-000000010"
    assert checkpoint.find_step(run) == newest
    assert checkpoint.find_step(str(run / "checkpoints")) == newest
    assert checkpoint.find_step(newest) == newest
    older = run / "checkpoints" / "step-000000005"
    assert checkpoint.find_step(older) == older
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"")
    assert checkpoint.find_step(weights) is None
