import ctypes
import errno
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vidgen.runtime.observe import hardware

MIB = 1 << 20


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Readings of the module's clock, taken from the front."""
    readings: list[float] = []
    monkeypatch.setattr(hardware, "time", SimpleNamespace(perf_counter=lambda: readings.pop(0)))
    return readings


def test_disk_bandwidth_is_bytes_over_seconds(tmp_path: Path, clock: list[float]) -> None:
    clock += [10.0, 10.5, 11.0, 14.0]  # start, before each block of 8 MiB, after fsync
    found = hardware.disk_bandwidth(tmp_path, size=16 * MIB)
    assert found["bytes"] == 16 * MIB
    assert found["write"] == 4 * MIB
    assert list(tmp_path.iterdir()) == []


def test_disk_bandwidth_stops_at_its_time_limit(tmp_path: Path, clock: list[float]) -> None:
    clock += [10.0, 10.5, 13.5, 14.0]
    found = hardware.disk_bandwidth(tmp_path, size=64 * MIB, limit_s=3)
    assert (found["bytes"], found["write"]) == (8 * MIB, 2 * MIB)


def test_a_full_disk_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 20 * MIB

    monkeypatch.setattr(hardware.shutil, "disk_usage", lambda directory: Usage)
    found = hardware.disk_bandwidth(tmp_path)
    assert found["write"] is None
    assert found["reason"] == "the disk is nearly full"


def test_o_direct_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, mode)

    monkeypatch.setattr(hardware.os, "open", refuse)
    available, reason = hardware.o_direct(tmp_path)
    assert not available
    assert reason == f"Invalid argument on the file system of {tmp_path}"
    assert hardware.disk_bandwidth(tmp_path, size=8 * MIB)["method"] == "buffered + fsync"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EPERM, "Operation not permitted; blocked by a seccomp profile or"),
        (errno.ENOSYS, "io_uring_setup: Function not implemented"),
    ],
)
def test_io_uring_says_why_not(monkeypatch: pytest.MonkeyPatch, code: int, reason: str) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(code)
        return -1

    library = SimpleNamespace(syscall=refuse)
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda *_, **__: library)
    available, why = hardware.io_uring()
    assert not available
    assert reason in why
    assert ("seccomp" in why) == (code == errno.EPERM)


def test_pinned_memory_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.pinned_memory() == (
        False,
        "needs a CUDA device; without one copies are simulated",
    )

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("out of host memory\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", refuse)
    assert hardware.pinned_memory() == (False, "out of host memory")


def test_io_uring_leaves_no_descriptor_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        hardware.io_uring()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_best_time_leaves_out_the_first_run(clock: list[float]) -> None:
    clock += [0.0, 0.1, 1.0, 4.0, 5.0, 7.0]  # 0.1 s, 3 s, 2 s
    runs: list[int] = []
    assert hardware.best_time(lambda: runs.append(1), torch.device("cpu"), 2) == 2
    assert len(runs) == 3


def test_a_copy_counts_reads_and_writes(clock: list[float]) -> None:
    clock += [0.0, 1.0, 2.0, 4.0]
    assert hardware.memory_bandwidth(8 * MIB, repeats=1) == 2 * 8 * MIB / 2.0


def test_versions_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise hardware.metadata.PackageNotFoundError(name)

    assert hardware.versions()["torch"] == torch.__version__
    monkeypatch.setattr(hardware.metadata, "version", absent)
    assert hardware.versions()["av"] == "not installed"


def test_the_machine_has_a_processor_and_memory() -> None:
    assert hardware.cpu()["cores"] == os.cpu_count()
    kilobytes = re.search(r"MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    assert kilobytes
    found = hardware.memory()
    assert found["total"] == pytest.approx(1024 * int(kilobytes[1]), rel=0.01)
    assert 0 < found["available"] < found["total"]
