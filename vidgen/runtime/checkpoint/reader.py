"""Reading parts of files: only the bytes that are needed, each checked before it is used."""

import errno
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidgen.errors import UserError
from vidgen.runtime.checkpoint import transfer
from vidgen.runtime.checkpoint.jobs import ENDED, Problem, ReadSpan, Statistics
from vidgen.runtime.checkpoint.layout import (
    CHUNK,
    DTYPES,
    Box,
    DamagedCheckpoint,
    Manifest,
    Slice,
    TensorEntry,
    read_manifest,
    unreadable,
)
from vidgen.runtime.crc32c import crc32c

_ADVICE = "restore it from a copy or load another step"


def runs(shape: tuple[int, ...], box: Box) -> tuple[np.ndarray, int]:
    """Where a box lies in a contiguous tensor: the first elements of its runs, and their length."""
    if box.shape == shape:
        return np.zeros(1, dtype=np.int64), box.numel
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
    return begins, run


def chunk_ranges(shape: tuple[int, ...], box: Box, itemsize: int) -> list[tuple[int, int]]:
    """The chunks of a slice that hold a box of it, as ranges (first, last + 1) in order."""
    if not box.numel:
        return []
    begins, run = runs(shape, box)
    first = begins * itemsize // CHUNK
    last = ((begins + run) * itemsize - 1) // CHUNK
    breaks = np.flatnonzero(first[1:] > last[:-1] + 1) + 1
    lows = first[np.concatenate(([0], breaks))]
    highs = last[np.concatenate((breaks - 1, [len(last) - 1]))] + 1
    return list(zip(lows.tolist(), highs.tolist(), strict=True))


@dataclass(frozen=True)
class Piece:
    """What one slice holds of a box that is wanted."""

    label: str
    part: Slice
    itemsize: int
    common: Box

    @property
    def inside(self) -> Box:
        start = tuple(a - b for a, b in zip(self.common.start, self.part.box.start, strict=True))
        return Box(start, self.common.shape)

    @property
    def nbytes(self) -> int:
        return self.common.numel * self.itemsize

    def _span(self, low: int, high: int, out: Tensor | None, begin: int = 0) -> ReadSpan:
        """Chunks low to high of the slice; `out` takes the bytes from the slice's byte `begin`."""
        start, end = low * CHUNK, min(high * CHUNK, self.part.box.numel * self.itemsize)
        return ReadSpan(
            self.label,
            self.part.file,
            self.part.offset + start,
            end - start,
            self.part.crcs[low:high],
            begin - start if out is not None else 0,
            out,
        )

    def all(self) -> ReadSpan:
        """The whole slice, only to be checked."""
        return self._span(0, len(self.part.crcs), None)

    def contiguous(self, begin: int, out: Tensor) -> ReadSpan:
        """The slice's bytes from `begin` on, as many as `out` takes."""
        end = begin + out.nbytes
        return self._span(begin // CHUNK, -(-end // CHUNK), out, begin)

    def scattered(self, whole: Tensor) -> list[ReadSpan]:
        """All chunks that hold something of the box, into memory as large as the whole slice."""
        ranges = chunk_ranges(self.part.box.shape, self.inside, self.itemsize)
        return [
            self._span(low, high, whole[low * CHUNK : high * CHUNK], low * CHUNK)
            for low, high in ranges
        ]


def pieces(path: Path, label: str, entry: TensorEntry, box: Box) -> list[Piece]:
    """The pieces that make up a box of a tensor."""
    itemsize = DTYPES[entry.dtype].itemsize
    found = [
        Piece(label, part, itemsize, common)
        for part in entry.slices
        if (common := part.box.intersect(box)) is not None
    ]
    covered = sum(piece.common.numel for piece in found)
    if covered != box.numel:
        raise DamagedCheckpoint(
            f"{path} is damaged: its files hold {covered} of the {box.numel} elements of {label}"
        )
    return found


def read(path: Path, spans: list[ReadSpan]) -> Statistics:
    """Read and check; a UserError names what is damaged."""
    problems, statistics = transfer.read_spans(path, spans)
    if problems:
        refused = problems[0].code in (errno.EACCES, errno.EPERM)
        kind = UserError if refused else DamagedCheckpoint
        raise kind(explain(path, problems[0]))
    return statistics


def explain(path: Path, problem: Problem) -> str:
    """One line for a problem."""
    file, label = path / problem.span.file, problem.span.label
    if problem.code == 0:
        why = (
            f"is damaged at {label}: the CRC32C of the bytes from {problem.offset} is "
            f"{problem.found:08x}, not {problem.expected:08x}"
        )
    elif problem.code == ENDED:
        why = f"is damaged at {label}: it ends at byte {problem.offset}"
    else:
        why = f"cannot be read for {label}: {os.strerror(problem.code)} at byte {problem.offset}"
    return f"{file} {why}; {_ADVICE}"


def read_head(path: Path, manifest: Manifest, name: str) -> bytes:
    """The bytes of a file that no tensor accounts for: a shard's header, an object's all."""
    entry = manifest.files[name]
    try:
        with open(path / name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(entry.checked)
    except OSError as error:
        raise unreadable(path / name, error, _ADVICE) from None
    if size != entry.size:
        raise DamagedCheckpoint(
            f"{path / name} is damaged: it has {size} bytes, not {entry.size}; {_ADVICE}"
        )
    if crc32c(data) != entry.crc:
        raise DamagedCheckpoint(
            f"{path / name} is damaged: the CRC32C of its first {entry.checked} bytes "
            f"is not {entry.crc:08x}; {_ADVICE}"
        )
    return data


class GroupReader:
    """One group of a step, read a tensor's rows at a time whatever its sharding."""

    def __init__(self, path: str | os.PathLike[str], group: str) -> None:
        self.path, self.group = Path(path), group
        held = read_manifest(self.path).tensors
        if group not in held:
            has = ", ".join(sorted(held)) or "no tensors"
            raise UserError(f"{path} holds no {group!r}; it holds {has}")
        self._entries = held[group]

    def shapes(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {name: (DTYPES[e.dtype], e.shape) for name, e in self._entries.items()}

    def read(self, name: str, out: Tensor, row: int = 0) -> None:
        """Fill `out`, which is contiguous and on the CPU, from row `row` of the tensor on."""
        entry = self._entries[name]
        box = Box((row, *(0 for _ in out.shape[1:])) if out.dim() else (), tuple(out.shape))
        spans, later = [], []
        for piece in pieces(self.path, f"{self.group}/{name}", entry, box):
            begins, _ = runs(piece.part.box.shape, piece.inside)
            target = out[piece.common.slices_within(box)]
            if len(begins) == 1 and target.is_contiguous():
                flat = target.view(-1).view(torch.uint8)
                spans.append(piece.contiguous(int(begins[0]) * piece.itemsize, flat))
            else:
                later.append((piece, target))
        read(self.path, spans)
        for piece, target in later:
            fill_scattered(self.path, piece, target)


def fill_scattered(path: Path, piece: Piece, target: Tensor) -> Statistics:
    """A piece that is not one run of bytes here or there, by way of memory for the whole slice."""
    size = piece.part.box.numel * piece.itemsize
    whole = torch.empty(size, dtype=torch.uint8)  # pages that are not read cost no memory
    statistics = read(path, piece.scattered(whole))
    stored = whole.view(target.dtype).view(piece.part.box.shape)
    with torch.no_grad():
        target.copy_(stored[piece.inside.slices_within(Box((0,) * stored.dim(), stored.shape))])
    return statistics
