"""The hardware of this machine, and its memory and disk bandwidth, measured in a few seconds."""

import ctypes
import mmap
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

LINUX = sys.platform.startswith("linux")
_MIB = 1 << 20
_ALIGNMENT = 4096  # alignment for O_DIRECT, enough for every block device
_SYS_IO_URING_SETUP = 425  # the same number on every architecture


def versions() -> dict[str, str]:
    """Versions of the packages that affect how vidgen runs; a missing one is 'not installed'."""
    from vidgen.version import __version__

    found = {
        "vidgen": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda (torch)": torch.version.cuda or "none",
        "platform": platform.platform(),
    }
    for package in ("triton", "numpy", "pydantic", "av", "pyarrow", "transformers", "tensorboard"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def tools() -> dict[str, str]:
    """Paths of the compilers that a build would use."""
    names = ("g++", "clang++", "cmake", "ninja", "nvcc")
    return {name: shutil.which(name) or "not found" for name in names}


def cpu() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields: dict[str, str] = {}
    for line in info.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    wanted = ("sse4_2", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "amx_bf16")
    return {
        "name": fields.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count() or 1,
        "usable cores": len(os.sched_getaffinity(0)) if LINUX else os.cpu_count(),
        "features": {name: name in flags for name in wanted},
    }


def memory() -> dict[str, float | None]:
    """Bytes of main memory, and the limit of locked memory per process (None: no limit)."""
    page = os.sysconf("SC_PAGE_SIZE")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return {
        "total": float(page * os.sysconf("SC_PHYS_PAGES")),
        "available": float(page * os.sysconf("SC_AVPHYS_PAGES")),
        "lockable": None if soft == resource.RLIM_INFINITY else float(soft),
    }


def gpus() -> list[dict[str, Any]]:
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "memory": float(properties.total_memory),
                "capability": f"sm_{properties.major}{properties.minor}",
                "multiprocessors": properties.multi_processor_count,
            }
        )
    return found


def io_uring() -> tuple[bool, str]:
    """Whether the kernel lets this process make an io_uring, and why not."""
    if not LINUX:
        return False, f"io_uring needs Linux; this is {sys.platform}"
    libc = ctypes.CDLL(None, use_errno=True)
    parameters = ctypes.create_string_buffer(256)  # struct io_uring_params is 120 bytes
    descriptor = libc.syscall(_SYS_IO_URING_SETUP, 1, parameters)
    if descriptor >= 0:
        os.close(descriptor)
        return True, "io_uring_setup succeeds"
    code = ctypes.get_errno()
    why = os.strerror(code)
    if code in (1, 13):  # EPERM, EACCES: a container's seccomp profile, or the sysctl
        why += "; blocked by a seccomp profile or kernel.io_uring_disabled"
    return False, f"io_uring_setup: {why}"


def o_direct(directory: Path) -> tuple[bool, str]:
    """Whether files under `directory` can bypass the page cache (O_DIRECT), and why not."""
    if not hasattr(os, "O_DIRECT"):
        return False, f"{sys.platform} has no O_DIRECT"
    try:
        with _scratch(directory) as path, _aligned(_ALIGNMENT) as block:
            descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT)
            try:
                os.write(descriptor, block)
            finally:
                os.close(descriptor)
    except OSError as error:
        return False, f"{error.strerror} on the file system of {directory}"
    return True, f"open and write succeed in {directory}"


def pinned_memory() -> tuple[bool, str]:
    if not torch.cuda.is_available():
        return False, "needs a CUDA device; without one copies are simulated"
    try:
        torch.empty(_MIB, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        return False, str(error).splitlines()[0]
    return True, "a page-locked buffer was allocated"


def disk_bandwidth(directory: Path, size: int = 256 * _MIB, limit_s: float = 3.0) -> dict[str, Any]:
    """Sequential write bandwidth in bytes per second, including fsync.

    Stops at `limit_s` or when the disk is nearly full, whichever comes first; never leaves a file.
    """
    direct, _ = o_direct(directory)
    free = shutil.disk_usage(directory).free
    size = min(size, free // 4) // (8 * _MIB) * (8 * _MIB)
    method = "O_DIRECT" if direct else "buffered"
    if size == 0:
        return {"method": method, "bytes": 0, "write": None, "reason": "the disk is nearly full"}
    with _scratch(directory) as path, _aligned(8 * _MIB) as block:
        descriptor = os.open(path, os.O_WRONLY | (os.O_DIRECT if direct else 0))
        try:
            written, start = 0, time.perf_counter()
            while written < size and time.perf_counter() - start < limit_s:
                written += os.write(descriptor, block)
            os.fsync(descriptor)
            seconds = time.perf_counter() - start
        finally:
            os.close(descriptor)
    return {"method": f"{method} + fsync", "bytes": written, "write": written / seconds}


def memory_bandwidth(size: int = 128 * _MIB, repeats: int = 5) -> float:
    """Bytes per second of a large copy, counting reads and writes; best of `repeats`."""
    return copy_bandwidth(torch.device("cpu"), size, repeats)


def device_bandwidth() -> dict[str, float]:
    """Copy bandwidth within GPU 0, and bytes per second from and to pinned host memory."""
    device = torch.device("cuda", 0)
    size = 512 * _MIB
    here = torch.empty(size, dtype=torch.uint8, device=device)
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    return {
        "copy": copy_bandwidth(device, size, 10),
        "host to device": size / best_time(lambda: here.copy_(host, non_blocking=True), device, 5),
        "device to host": size / best_time(lambda: host.copy_(here, non_blocking=True), device, 5),
    }


def copy_bandwidth(device: torch.device, size: int, repeats: int) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / best_time(lambda: target.copy_(source), device, repeats)


def best_time(work: Any, device: torch.device, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])  # the first run includes page faults and start-up


@contextmanager
def _scratch(directory: Path) -> Iterator[str]:
    descriptor, path = tempfile.mkstemp(prefix=".vidgen-doctor-", dir=directory)
    os.close(descriptor)
    try:
        yield path
    finally:
        os.unlink(path)


@contextmanager
def _aligned(size: int) -> Iterator[mmap.mmap]:
    """A page-aligned buffer, as O_DIRECT needs, with incompressible contents."""
    block = mmap.mmap(-1, size)
    try:
        block.write(os.urandom(size))
        yield block
    finally:
        block.close()
