"""Bytes between memory and files: by the compiled engine, or without it by plain Python.

Both follow the same plan and answer alike; only who pushes the bytes differs.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from torch import Tensor

from vidgen.runtime import native
from vidgen.runtime.checkpoint import python_io
from vidgen.runtime.checkpoint.jobs import Hook, OutputFile, Problem, ReadSpan, Statistics
from vidgen.runtime.checkpoint.layout import CHUNK

_MIB = 1 << 20
RING = {"threads": 2, "depth": 8, "block": _MIB}  # many small writes under way
THREADS = {"threads": 4, "depth": 1, "block": 4 * _MIB}  # one large write a thread
READ_BLOCK = 4 * _MIB
TIMEOUT_S = 3600.0  # for one system call: slow storage is no failure

hook: Hook | None = None  # tests put their faults here


@dataclass(frozen=True)
class Method:
    """How the files of a directory are written."""

    engine: bool
    uring: bool
    direct: bool
    why_not: str  # what is not as fast as could be, and why

    def __str__(self) -> str:
        if not self.engine:
            return f"plain Python ({self.why_not})"
        how = "io_uring" if self.uring else "pwrite threads"
        where = "O_DIRECT" if self.direct else "page cache"
        return f"{how}, {where}" + (f" ({self.why_not})" if self.why_not else "")


def engine() -> ModuleType | None:
    """The compiled one, where it was built."""
    return native.load()


def method(directory: Path) -> Method:
    """What the directory's file system and this kernel take; found out once for each."""
    device = os.stat(directory).st_dev
    if device not in _probed:
        _probed[device] = _probe(directory)
    return _probed[device]


def writer(directory: Path) -> tuple[bool, str]:
    """Whether the compiled engine writes a directory's checkpoints, and how they are written."""
    found = method(directory)
    return found.engine, str(found)


_probed: dict[int, Method] = {}


def _probe(directory: Path) -> Method:
    module = engine()
    if module is None:
        return Method(False, False, False, native.reason())
    no_uring, no_direct = module.io_why_not_uring(), module.io_why_not_direct(str(directory))
    why = {"io_uring": no_uring, "O_DIRECT": no_direct}
    said = "; ".join(f"no {name}: {reason}" for name, reason in why.items() if reason)
    return Method(True, not no_uring, not no_direct, said)


def write_files(
    files: Sequence[OutputFile], how: Method, timeout_s: float | None = None
) -> tuple[list[list[int]], Statistics]:
    """Write new files and make their contents durable; the checksums of each one's parts.

    An OSError names the file, the offset and what was wrong.
    """
    module = engine()
    if module is None:
        return python_io.write_files(files, hook)
    jobs = [(str(f.path), f.data.data_ptr(), f.size, f.checked) for f in files]
    crcs, statistics = module.io_write(
        jobs,
        direct=how.direct,
        uring=how.uring,
        timeout_s=timeout_s or TIMEOUT_S,
        hook=hook,
        **(RING if how.uring else THREADS),
    )
    return crcs, Statistics(**statistics)


def read_spans(
    folder: Path,
    spans: Sequence[ReadSpan],
    *,
    keep_going: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Problem], Statistics]:
    """Read, check and deliver, on many threads; the first problem ends it unless told otherwise.

    What the page cache holds is copied from there; the rest goes around it where O_DIRECT can.
    """
    module = engine()
    if module is None:
        return python_io.read_spans(folder, spans, keep_going, progress, hook)
    names = sorted({span.file for span in spans})
    number = {name: i for i, name in enumerate(names)}
    jobs = [_job(span, number[span.file]) for span in spans]
    try:
        found, statistics = module.io_read(
            [str(folder / name) for name in names],
            jobs,
            chunk=CHUNK,
            keep_going=keep_going,
            direct=True,
            threads=_read_threads(),
            block=READ_BLOCK,
            timeout_s=TIMEOUT_S,
            hook=hook,
            progress=progress,
        )
    except TimeoutError:
        _lost.append(spans)
        raise
    return [Problem(spans[index], *rest) for index, *rest in found], Statistics(**statistics)


_lost: list[Sequence[ReadSpan]] = []  # whose memory a stuck read may still fill


def _job(span: ReadSpan, file: int) -> tuple[object, ...]:
    wanted, address = (0, 0) if span.out is None else (span.out.nbytes, span.out.data_ptr())
    return file, span.offset, span.size, span.crcs, span.begin, wanted, address


@cache
def _read_threads() -> int:
    """More than cores: a disk needs this many requests under way to reach its speed."""
    return min(16, max(8, 2 * len(os.sched_getaffinity(0))))


def copy(pairs: Sequence[tuple[Tensor, Tensor]], threads: int) -> None:
    """Copy each second to each first: contiguous tensors on the CPU, of as many bytes."""
    module = engine()
    if module is None:
        for to, source in pairs:
            to.copy_(source)
    else:
        module.io_copy([(to.data_ptr(), s.data_ptr(), s.nbytes) for to, s in pairs], threads)
