"""The fault matrix: disks that do half, refuse, are full, slow or stuck."""

import errno
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from vidgen.errors import UserError
from vidgen.runtime import checkpoint
from vidgen.runtime.checkpoint import python_io, staging, transfer
from vidgen.runtime.checkpoint.layout import CHUNK, PAGE, read_manifest
from vidgen.runtime.checkpoint.transfer import Method


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a state of two megabytes is many transfers."""
    monkeypatch.setattr(transfer, "RING", {"threads": 2, "depth": 3, "block": 16 * PAGE})
    monkeypatch.setattr(transfer, "THREADS", {"threads": 3, "depth": 1, "block": 16 * PAGE})
    monkeypatch.setattr(python_io, "_BLOCK", 16 * PAGE)


def state(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    return {
        "model": {"w": torch.randn(250, 1001), "b": torch.randn(7).bfloat16()},
        "optim": {"w.exp_avg": torch.randn(250, 1001), "w.step": torch.tensor(3.0)},
    }


def check(path: Path, seed: int) -> None:
    assert checkpoint.verify(path) == []
    target = {g: {n: torch.zeros_like(t) for n, t in m.items()} for g, m in state(0).items()}
    checkpoint.load(path, target)
    for group, members in state(seed).items():
        for name, tensor in members.items():
            assert torch.equal(target[group][name], tensor), f"{group}/{name}"


Fault = Callable[[str, str, int, int], int]


def every(number: int, call: str, answer: Callable[[int], int]) -> Fault:
    """The answer in place of each so many-th call of a kind."""
    seen, lock = 0, threading.Lock()

    def hook(name: str, path: str, offset: int, size: int) -> int:
        nonlocal seen
        with lock:
            seen += name == call
            return answer(size) if name == call and seen % number == 0 else size

    return hook


HARMLESS = {
    "short": lambda call: every(3, call, lambda size: max(1, size // 3)),
    "a page short": lambda call: every(2, call, lambda size: max(1, size - PAGE)),
    "some nothing": lambda call: every(4, call, lambda size: -errno.EINTR),
    "not now": lambda call: every(4, call, lambda size: -errno.EAGAIN),
    "slow": lambda call: every(9, call, lambda size: time.sleep(0.02) or size),
}


@pytest.mark.parametrize("fault", HARMLESS)
def test_what_a_disk_may_do_changes_nothing(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if way == "plain" and fault in ("some nothing", "not now"):
        pytest.skip("Python repeats interrupted calls itself, below the hook")
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "hook", HARMLESS[fault]("write"))
        path = checkpoint.save(tmp_path, 1, state(1), {}).wait()
    check(path, 1)
    monkeypatch.setattr(transfer, "hook", HARMLESS[fault]("read"))
    check(path, 1)


@pytest.mark.parametrize(
    ("call", "number"), [("open", 2), ("write", 1), ("write", 5), ("fsync", 1), ("fsync", 2)]
)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_what_it_may_not_do_is_named_and_the_checkpoint_before_stays(
    tmp_path: Path,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    code: int,
) -> None:
    checkpoint.save(tmp_path, 1, state(1), {}).wait()
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "hook", every(number, call, lambda size: -code))
        with pytest.raises((UserError, OSError)) as refusal:
            checkpoint.save(tmp_path, 2, state(2), {}).wait()
    said = str(refusal.value)
    if code == errno.ENOSPC:
        assert "step 2 was not saved" in said
        assert "the disk is full" in said
        assert "\n" not in said
    else:
        assert "-00000-of-00001.safetensors" in said
        assert f"{call}" in said
        assert "Input/output error" in said
        assert ("at offset" in said) == (call == "write") or way == "plain"
    assert os.listdir(tmp_path) == ["step-000000001"]
    check(checkpoint.latest(tmp_path), 1)
    check(checkpoint.save(tmp_path, 2, state(2), {}).wait(), 2)


@pytest.mark.parametrize("way", ["ring", "threads", "cached"], indirect=True)
@pytest.mark.parametrize("call", ["allocate", "truncate"])
def test_the_engines_other_calls_are_looked_at_too(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    if way == "cached" and call == "truncate":
        pytest.skip("nothing is written beyond the end")
    monkeypatch.setattr(transfer, "hook", every(2, call, lambda size: -errno.EIO))
    with pytest.raises(OSError, match=rf"{call}: Input/output error.*safetensors"):
        checkpoint.save(tmp_path, 2, state(2), {}).wait()
    assert os.listdir(tmp_path) == []


def test_a_disk_that_takes_nothing_is_given_up(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "plain":
        pytest.skip("plain Python has no count of idle writes")
    monkeypatch.setattr(transfer, "hook", lambda call, *rest: 0)
    with pytest.raises(OSError, match=r"makes no progress.*safetensors"):
        checkpoint.save(tmp_path, 1, state(1), {}).wait()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    opened = threading.Event()
    yield opened
    opened.set()
    time.sleep(0.1)  # threads that were stuck end before the interpreter does


@pytest.mark.parametrize("way", ["ring", "threads", "cached"], indirect=True)
@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_stuck_files_are_named_and_their_memory_is_not_used_again(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch, gate: threading.Event, call: str
) -> None:
    checkpoint.save(tmp_path, 1, state(1), {}).wait()
    memory = staging._arena
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "TIMEOUT_S", 0.2)
        patch.setattr(transfer, "hook", every(2, call, lambda size: gate.wait(60) and size))
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=rf"{call} of \d+ bytes.*is stuck.*\.safetensors"):
            checkpoint.save(tmp_path, 2, state(2), {}).wait()
        assert time.monotonic() - began < 30
    assert checkpoint.steps(tmp_path) == [1]
    check(checkpoint.latest(tmp_path), 1)
    check(checkpoint.save(tmp_path, 3, state(3), {}).wait(), 3)
    assert staging._arena is not memory
    # What was stuck comes back, finds that nobody waits for it, and does no harm.
    gate.set()
    check(checkpoint.save(tmp_path, 4, state(4), {}).wait(), 4)


@pytest.mark.parametrize("way", ["ring"], indirect=True)
def test_stuck_reads_are_named(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    path = checkpoint.save(tmp_path, 1, state(1), {}).wait()
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "TIMEOUT_S", 0.2)
        patch.setattr(transfer, "hook", every(2, "read", lambda size: gate.wait(60) and size))
        with pytest.raises(TimeoutError, match=r"read of \d+ bytes.*is stuck.*\.safetensors"):
            checkpoint.read_tensors(path, "model")
    check(path, 1)


def test_unreadable_places_are_named(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint.save(tmp_path, 1, state(1), {}).wait()
    hook = every(1, "read", lambda size: -errno.EIO)
    monkeypatch.setattr(transfer, "hook", hook)
    with pytest.raises(UserError, match=r"safetensors cannot be read for model/.: Input/output"):
        checkpoint.read_tensors(path, "model")
    problems = checkpoint.verify(path)
    for label in ("model/w", "model/b", "optim/w.exp_avg", "optim/w.step"):
        assert any(f"cannot be read for {label}: Input/output error" in p for p in problems)


@pytest.mark.parametrize("cold", [True, False])
def test_odd_parts_are_read_around_the_page_cache_and_through_it(
    tmp_path: Path, way: str, cold: bool
) -> None:
    """Files of odd sizes, slices that begin anywhere, ends that are no whole chunk."""
    torch.manual_seed(0)
    odd = {f"t{n}": torch.randn(n) for n in (1, 3, 1000, CHUNK // 4, CHUNK // 4 + 1, 200_003)}
    path = checkpoint.save(tmp_path, 1, {"model": odd}, {}).wait()
    for name in read_manifest(path).files:
        fd = os.open(path / name, os.O_RDONLY)
        if cold:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            os.pread(fd, 1 << 24, 0)
        os.close(fd)
    target = {name: torch.zeros_like(t) for name, t in odd.items()}
    told: list[checkpoint.LoadReport] = []
    checkpoint.load(path, {"model": target}, report=told.append)
    assert all(torch.equal(target[name], t) for name, t in odd.items())
    assert told[0].needed == sum(t.nbytes for t in odd.values())
    assert told[0].needed <= told[0].read <= told[0].needed + 2 * PAGE * (len(odd) + 2)
    if not cold or way == "plain":
        assert told[0].direct == 0


def test_what_a_directory_takes_is_probed_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Engine:
        io_why_not_uring = staticmethod(lambda: "")
        io_why_not_direct = staticmethod(lambda directory: "open: Invalid argument")

    monkeypatch.setattr(transfer, "_probed", {})
    monkeypatch.setattr(transfer, "engine", lambda: Engine)
    method = transfer.method(tmp_path)
    assert method == Method(True, True, False, "no O_DIRECT: open: Invalid argument")
    assert str(method) == "io_uring, page cache (no O_DIRECT: open: Invalid argument)"


def test_a_save_tells_what_it_took(tmp_path: Path, way: str) -> None:
    saving = checkpoint.save(tmp_path, 1, state(1), {})
    saving.wait()
    assert saving.summary is not None
    sizes = [p.stat().st_size for p in saving.path.glob("*.safetensors")]
    assert saving.summary.bytes == sum(sizes)
    assert str(transfer.method(tmp_path)) in str(saving.summary)
    assert saving.summary.blocked_s > 0
    assert saving.summary.written_s > 0


def test_memory_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_arena", None)
    checkpoint.reserve(sum(t.nbytes for m in state(1).values() for t in m.values()))
    reserved = staging._arena
    assert reserved is not None
    for step in range(3):
        checkpoint.save(tmp_path, step, state(step), {}).wait()
    assert staging._arena is reserved
    assert reserved.stats().held == 0
    large = {"model": {"w": torch.ones(5_000_000)}}
    checkpoint.save(tmp_path, 4, large, {}).wait()
    assert staging._arena is not reserved
    assert (checkpoint.read_tensors(tmp_path / "step-000000004", "model")["w"] == 1).all()


def test_a_save_waits_for_the_one_before_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = threading.Event()
    caplog.set_level(logging.INFO)
    hook = every(1, "fsync", lambda size: opened.wait(60) and size)
    monkeypatch.setattr(transfer, "hook", hook)
    first = checkpoint.save(tmp_path, 1, state(1), {})
    threading.Timer(0.3, opened.set).start()
    second = checkpoint.save(tmp_path, 2, state(2), {})
    assert first.done()
    assert second.wait() == checkpoint.latest(tmp_path)
    assert re.search(r"step-000000001 to be written \(so far \d+ saves had to wait\)", caplog.text)
    assert second.summary is not None
    assert second.summary.waited_s > 0.1
    check(tmp_path / "step-000000001", 1)
    check(tmp_path / "step-000000002", 2)
