import errno
import os
from pathlib import Path

import pytest
import torch

from vidgen.runtime.observe import hardware

MIB = 1 << 20


def test_disk_bandwidth_leaves_no_file(tmp_path: Path) -> None:
    found = hardware.disk_bandwidth(tmp_path, size=16 * MIB)
    assert found["bytes"] == 16 * MIB
    assert found["write"] > 1e6
    assert list(tmp_path.iterdir()) == []


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


def test_io_uring_and_pinned_memory_give_a_reason() -> None:
    for available, reason in (hardware.io_uring(), hardware.pinned_memory()):
        assert isinstance(available, bool)
        assert reason


def test_io_uring_leaves_no_descriptor_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        hardware.io_uring()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_copy_counts_reads_and_writes() -> None:
    size = 8 * MIB
    slow = hardware.best_time(lambda: torch.zeros(size, dtype=torch.uint8), torch.device("cpu"), 2)
    assert slow > 0
    assert 1e8 < hardware.memory_bandwidth(size, repeats=2) < 1e13


def test_versions_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise hardware.metadata.PackageNotFoundError(name)

    assert hardware.versions()["torch"] == torch.__version__
    monkeypatch.setattr(hardware.metadata, "version", absent)
    assert hardware.versions()["av"] == "not installed"


def test_the_machine_has_a_processor_and_memory() -> None:
    assert hardware.cpu()["cores"] >= 1
    assert hardware.memory()["total"] > 2**28
