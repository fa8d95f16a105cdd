"""Writing and reading files without the compiled engine: a call at a time, checksums in Python."""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vidgen.runtime.checkpoint.jobs import ENDED, Hook, OutputFile, Problem, ReadSpan, Statistics
from vidgen.runtime.checkpoint.layout import CHUNK
from vidgen.runtime.crc32c import crc32c

_BLOCK = 4 * 2**20  # bytes of one write


class _Caller:
    """Makes the system calls on one file, each after asking the hook."""

    def __init__(self, path: Path, hook: Hook | None) -> None:
        self._path, self._hook = str(path), hook

    def _allowed(self, name: str, offset: int, size: int) -> int:
        allowed = self._hook(name, self._path, offset, size) if self._hook else size
        if allowed < 0:
            why = f"{name} of {size} bytes at offset {offset}: {os.strerror(-allowed)}"
            raise OSError(-allowed, why, self._path)
        return allowed

    def open(self, flags: int) -> int:
        self._allowed("open", 0, 0)
        return os.open(self._path, flags | os.O_CLOEXEC, 0o644)

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        return os.pwrite(fd, data[: self._allowed("write", offset, len(data))], offset)

    def read(self, fd: int, into: memoryview, offset: int) -> int:
        return os.preadv(fd, [into[: self._allowed("read", offset, len(into))]], offset)

    def fsync(self, fd: int) -> None:
        self._allowed("fsync", 0, 0)
        os.fsync(fd)


def write_files(
    files: Sequence[OutputFile], hook: Hook | None
) -> tuple[list[list[int]], Statistics]:
    crcs, moved, continued = [], 0, 0
    for file in files:
        data = file.data[: file.size].numpy().data
        call = _Caller(file.path, hook)
        fd = call.open(os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            at = 0
            while at < file.size:
                part = data[at : at + _BLOCK]
                done = call.write(fd, part, at)
                continued += done < len(part)
                at += done
            call.fsync(fd)
        finally:
            os.close(fd)
        moved += file.size
        crcs.append([crc32c(data[begin : begin + size]) for begin, size in file.checked])
    return crcs, Statistics(moved, 0, continued, 0)


def read_spans(
    folder: Path,
    spans: Sequence[ReadSpan],
    keep_going: bool,
    progress: Callable[[int], None] | None,
    hook: Hook | None,
) -> tuple[list[Problem], Statistics]:
    problems: list[Problem] = []
    moved = 0
    for span in spans:
        call = _Caller(folder / span.file, hook)
        try:
            fd = call.open(os.O_RDONLY)
            try:
                for problem, got in _chunks(span, fd, call):
                    moved += got
                    if problem is not None:
                        problems.append(problem)
            finally:
                os.close(fd)
        except OSError as error:
            problems.append(Problem(span, error.errno or errno.EIO, span.offset, 0, 0))
        if problems and not keep_going:
            break
        if progress:
            progress(moved)
    return problems, Statistics(moved, 0, 0, 0)


def _chunks(span: ReadSpan, fd: int, call: _Caller) -> Iterator[tuple[Problem | None, int]]:
    """Each chunk's problem, if there is one, and the bytes read for it."""
    wanted = span.out.numpy().data if span.out is not None else memoryview(b"")
    for at in range(0, span.size, CHUNK):
        data = bytearray(min(CHUNK, span.size - at))
        got = 0
        while got < len(data):
            start = span.offset + at + got
            more = call.read(fd, memoryview(data)[got:], start)
            if more == 0:
                yield Problem(span, ENDED, start, 0, 0), got
                return
            got += more
        found, expected = crc32c(data), span.crcs[at // CHUNK]
        if found != expected:
            yield Problem(span, 0, span.offset + at, expected, found), got
            continue
        low, high = max(at, span.begin), min(at + len(data), span.begin + len(wanted))
        if low < high:
            wanted[low - span.begin : high - span.begin] = data[low - at : high - at]
        yield None, got
