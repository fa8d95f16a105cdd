"""Reading parts of files: only the bytes that are needed, each checked before it is used."""

import math
import os
import threading
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidgen.errors import UserError
from vidgen.runtime.checkpoint.layout import CHUNK, DTYPES, Box, Manifest, Slice, chunk_crcs
from vidgen.runtime.crc32c import crc32c

_ADVICE = "restore it from a copy or load another step"


def chunk_ranges(shape: tuple[int, ...], box: Box, itemsize: int) -> list[tuple[int, int]]:
    """The chunks of a slice that hold a box of it, as ranges (first, last + 1) in order."""
    if not box.numel:
        return []
    # Walk in from the last dimension: what is taken whole, and one dimension more, is contiguous.
    outer = len(shape)
    run = 1
    while outer and box.shape[outer - 1] == shape[outer - 1]:
        run *= shape[outer - 1]
        outer -= 1
    if outer:
        run *= box.shape[outer - 1]
        outer -= 1
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    begins = np.array([sum(a * s for a, s in zip(box.start, strides, strict=True))], dtype=np.int64)
    for d in range(outer):
        steps = np.arange(box.shape[d], dtype=np.int64) * strides[d]
        begins = (begins[:, None] + steps).reshape(-1)
    first = begins * itemsize // CHUNK
    last = ((begins + run) * itemsize - 1) // CHUNK
    breaks = np.flatnonzero(first[1:] > last[:-1] + 1) + 1
    lows = first[np.concatenate(([0], breaks))]
    highs = last[np.concatenate((breaks - 1, [len(last) - 1]))] + 1
    return list(zip(lows.tolist(), highs.tolist(), strict=True))


class Reader:
    """The files of one checkpoint, opened as they are needed, every read of them checked."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self._manifest = manifest
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open.values():
            os.close(fd)

    def head(self, name: str) -> bytes:
        """The bytes of a file that no tensor accounts for: a shard's header, an object's all."""
        entry = self._manifest.files[name]
        fd = self._descriptor(name, "it")
        if (size := os.fstat(fd).st_size) != entry.size:
            raise UserError(
                f"{self.path / name} is damaged: it has {size} bytes, not {entry.size}; {_ADVICE}"
            )
        data = bytearray(entry.checked)
        self._fill(fd, name, "its beginning", memoryview(data), 0)
        if crc32c(data) != entry.crc:
            raise UserError(
                f"{self.path / name} is damaged: the CRC32C of its first {entry.checked} bytes "
                f"is not {entry.crc:08x}; {_ADVICE}"
            )
        return bytes(data)

    def read(self, label: str, dtype: str, part: Slice, inside: Box) -> Tensor:
        """A slice's tensor, of which only the box `inside` need be read and holds its values."""
        count = part.box.numel * DTYPES[dtype].itemsize
        data = torch.empty(count, dtype=torch.uint8)  # pages that are not read cost no memory
        view = data.numpy().data
        fd = self._descriptor(part.file, label)
        for low, high in chunk_ranges(part.box.shape, inside, DTYPES[dtype].itemsize):
            begin, end = low * CHUNK, min(high * CHUNK, count)
            self._fill(fd, part.file, label, view[begin:end], part.offset + begin)
            for at, crc in enumerate(chunk_crcs(view[begin:end]), low):
                if crc != part.crcs[at]:
                    raise UserError(
                        f"{self.path / part.file} is damaged at {label}: the CRC32C of the bytes "
                        f"from {part.offset + at * CHUNK} is {crc:08x}, not {part.crcs[at]:08x}; "
                        f"{_ADVICE}"
                    )
        return data.view(DTYPES[dtype]).view(part.box.shape)

    def _descriptor(self, name: str, label: str) -> int:
        with self._lock:
            if name not in self._open:
                try:
                    self._open[name] = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise UserError(
                        f"{self.path / name} cannot be read for {label}: "
                        f"{error.strerror}; {_ADVICE}"
                    ) from None
            return self._open[name]

    def _fill(self, fd: int, name: str, label: str, into: memoryview, offset: int) -> None:
        while len(into):
            try:
                got = os.preadv(fd, [into], offset)
            except OSError as error:
                raise UserError(
                    f"{self.path / name} cannot be read at {label}: {error.strerror}; {_ADVICE}"
                ) from error
            if got == 0:
                raise UserError(
                    f"{self.path / name} is damaged at {label}: it ends at byte {offset}; {_ADVICE}"
                )
            into, offset = into[got:], offset + got
