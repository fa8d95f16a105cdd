"""Loading: any sharding reads any other's, only the bytes it needs, each checked before use."""

import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidgen.errors import UserError
from vidgen.runtime.checkpoint.layout import (
    CHUNK,
    DTYPE_NAMES,
    DTYPES,
    Box,
    Manifest,
    Slice,
    TensorEntry,
    chunk_crcs,
    local_part,
    object_file,
    read_manifest,
    whole,
)
from vidgen.runtime.crc32c import crc32c

_ADVICE = "restore it from a copy or load another step"
_THREADS = 8  # reads wait for the disk more than for a core


def load(
    path: str | os.PathLike[str], tensors: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Any]:
    """Fill the tensors in place from a step's directory and return its objects.

    The groups asked for must hold exactly the checkpoint's names, shapes and dtypes; groups not
    asked for are left alone. A DTensor gets the part its rank holds, however the checkpoint was
    sharded. Every rank loads for itself. After an error the tensors' contents are undefined.
    """
    path = Path(path)
    manifest = read_manifest(path)
    for group, members in tensors.items():
        _check_match(path, group, manifest.tensors.get(group), members, list(manifest.tensors))
    with _Files(path, manifest) as files:
        fills: list[Callable[[], None]] = []
        for group, members in tensors.items():
            for name, tensor in members.items():
                local, box = local_part(tensor)
                entry = manifest.tensors[group][name]
                fills += _fills(files, f"{group}/{name}", entry, local, box)
        _run_all(fills)
    return _objects(path, manifest)


def read_tensors(path: str | os.PathLike[str], group: str) -> dict[str, Tensor]:
    """A group's tensors, whole, on the CPU."""
    path = Path(path)
    groups = read_manifest(path).tensors
    if group not in groups:
        raise UserError(f"{path} holds no {group!r}; {_it_holds(groups)}")
    tensors = {
        name: torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        for name, entry in groups[group].items()
    }
    load(path, {group: tensors})
    return tensors


def read_objects(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The objects saved with a step."""
    return _objects(Path(path), read_manifest(Path(path)))


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Read everything; one line for each problem, naming file and tensor. Empty: all is well."""
    path = Path(path)
    try:
        manifest = read_manifest(path)
    except UserError as error:
        return [str(error)]
    problems: list[str] = []

    def passes(check: Callable[..., object], *arguments: object) -> bool:
        try:
            check(*arguments)
        except UserError as error:
            problems.append(str(error))
            return False
        return True

    with _Files(path, manifest) as files:
        for name in manifest.files:
            passes(files.head, name)
        for group, entries in manifest.tensors.items():
            for name, entry in entries.items():
                label = f"{group}/{name}"
                passes(_check_cover, path, label, entry, whole(entry.shape))
                for part in entry.slices:
                    if (path / part.file).is_file():  # else it has been named already
                        passes(files.read, label, entry.dtype, part, whole(part.box.shape))
    return problems


def _it_holds(groups: Iterable[str]) -> str:
    return f"it holds {', '.join(sorted(groups)) or 'no tensors'}"


def _check_match(
    path: Path,
    group: str,
    entries: Mapping[str, TensorEntry] | None,
    members: Mapping[str, Tensor],
    groups: list[str],
) -> None:
    if entries is None:
        raise UserError(f"{path} holds no {group!r}; {_it_holds(groups)}")
    complaints = []
    if missing := [name for name in members if name not in entries]:
        complaints.append(f"the checkpoint lacks {_some(missing)}")
    if extra := [name for name in entries if name not in members]:
        complaints.append(f"nothing here takes its {_some(extra)}")
    different = []
    for name, tensor in members.items():
        if entry := entries.get(name):
            here = (DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
            if here != (entry.dtype, entry.shape):
                there = f"{entry.dtype} {list(entry.shape)}"
                different.append(f"{name} ({there} there, {here[0]} {list(here[1])} here)")
    if different:
        complaints.append(f"they differ in {_some(different)}")
    if complaints:
        raise UserError(
            f"{group!r} in {path} does not fit: {'; '.join(complaints)}; "
            "load it with the recipe it was saved with"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _fills(
    files: "_Files", label: str, entry: TensorEntry, local: Tensor, box: Box
) -> list[Callable[[], None]]:
    """One piece of work for each slice that has something of the box."""
    _check_cover(files.path, label, entry, box)
    work: list[Callable[[], None]] = []
    for part in entry.slices:
        common = part.box.intersect(box)
        if common is None:
            continue

        def fill(part: Slice = part, common: Box = common) -> None:
            index = common.slices_within(part.box)
            inside = Box(tuple(s.start for s in index), common.shape)
            stored = files.read(label, entry.dtype, part, inside)
            with torch.no_grad():
                local[common.slices_within(box)].copy_(stored[index])

        work.append(fill)
    return work


def _check_cover(path: Path, label: str, entry: TensorEntry, box: Box) -> None:
    parts = [part.box.intersect(box) for part in entry.slices]
    covered = sum(part.numel for part in parts if part is not None)
    if covered != box.numel:
        raise UserError(
            f"{path} is damaged: its files hold {covered} of the {box.numel} elements of {label}"
        )


def _run_all(work: list[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(min(_THREADS, max(1, len(work)))) as pool:
        futures = [pool.submit(item) for item in work]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _objects(path: Path, manifest: Manifest) -> dict[str, Any]:
    with _Files(path, manifest) as files:
        return {name: json.loads(files.head(object_file(name))) for name in manifest.objects}


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


class _Files:
    """The files of one checkpoint, opened as they are needed, every read of them checked."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self._manifest = manifest
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "_Files":
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
