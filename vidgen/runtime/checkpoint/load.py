"""Loading: any world size and any sharding reads any other's."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidgen.errors import UserError
from vidgen.runtime.checkpoint import transfer
from vidgen.runtime.checkpoint.commit import complete
from vidgen.runtime.checkpoint.jobs import ReadSpan
from vidgen.runtime.checkpoint.layout import (
    DTYPE_NAMES,
    DTYPES,
    Manifest,
    TensorEntry,
    local_part,
    object_file,
    read_manifest,
    whole,
)
from vidgen.runtime.checkpoint.reader import (
    Piece,
    explain,
    fill_scattered,
    pieces,
    read,
    read_head,
    runs,
)
from vidgen.runtime.checkpoint.to_device import Move, read_to_devices

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """What a load read on this rank."""

    needed: int  # bytes of the tensors asked for
    read: int  # bytes read for them: whole pages, whole checksums
    direct: int  # of these, past the page cache
    seconds: float

    @property
    def amplification(self) -> float:
        return self.read / self.needed if self.needed else 1.0

    def __str__(self) -> str:
        return (
            f"{self.needed / 1e9:.2f} GB in {self.seconds:.2f} s; read {self.amplification:.3f} "
            f"times the bytes needed, {self.direct / max(self.read, 1):.0%} of it by O_DIRECT"
        )


def load(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Mapping[str, Tensor]],
    *,
    report: Callable[[LoadReport], None] | None = None,
) -> dict[str, Any]:
    """Fill the tensors in place from a step's directory and return its objects.

    The groups asked for must hold exactly the checkpoint's names, shapes and dtypes; groups not
    asked for are left alone. A DTensor gets the part its rank holds, however the checkpoint was
    sharded. Every rank loads for itself. After an error the tensors' contents are undefined.
    """
    began = time.perf_counter()
    path = Path(path)
    manifest = read_manifest(path)
    for group, members in tensors.items():
        _check_match(path, group, manifest.tensors.get(group), members, list(manifest.tensors))
    work = _Work()
    for group, members in tensors.items():
        for name, tensor in members.items():
            local, box = local_part(tensor)
            label = f"{group}/{name}"
            for piece in pieces(path, label, manifest.tensors[group][name], box):
                work.add(piece, local[piece.common.slices_within(box)])
    counts = [read(path, work.in_place)]
    counts += read_to_devices(path, work.to_device)
    counts += [fill_scattered(path, piece, target) for piece, target in work.scattered]
    done = LoadReport(
        work.needed,
        sum(count.bytes for count in counts),
        sum(count.direct for count in counts),
        time.perf_counter() - began,
    )
    _log.info("%s: %s", path, done)
    if report:
        report(done)
    return _objects(path, manifest)


class _Work:
    """The pieces to load, by the way each can take."""

    def __init__(self) -> None:
        self.in_place: list[ReadSpan] = []
        self.to_device: list[Move] = []
        self.scattered: list[tuple[Piece, Tensor]] = []
        self.needed = 0

    def add(self, piece: Piece, target: Tensor) -> None:
        self.needed += piece.nbytes
        begins, _ = runs(piece.part.box.shape, piece.inside)
        if len(begins) > 1 or not target.is_contiguous():
            self.scattered.append((piece, target))
            return
        begin, flat = int(begins[0]) * piece.itemsize, target.view(-1).view(torch.uint8)
        if flat.device.type == "cpu":
            self.in_place.append(piece.contiguous(begin, flat))
        else:
            self.to_device.append(Move(piece, begin, flat))


@dataclass(frozen=True)
class About:
    """A checkpoint in short."""

    bytes: int
    world: int  # ranks that wrote it
    groups: dict[str, int]  # and the bytes of each one's tensors


def describe(root: str | os.PathLike[str], step: int) -> About:
    """What a step under root holds."""
    manifest = read_manifest(complete(Path(root))[step])
    sizes = {
        group: sum(whole(e.shape).numel * DTYPES[e.dtype].itemsize for e in entries.values())
        for group, entries in manifest.tensors.items()
    }
    return About(sum(file.size for file in manifest.files.values()), manifest.world, sizes)


def groups(path: str | os.PathLike[str]) -> list[str]:
    """The names of the tensor groups a step holds."""
    return list(read_manifest(Path(path)).tensors)


def read_tensors(path: str | os.PathLike[str], group: str) -> dict[str, Tensor]:
    """A group's tensors, whole, on the CPU."""
    path = Path(path)
    held = read_manifest(path).tensors
    if group not in held:
        raise UserError(f"{path} holds no {group!r}; {_it_holds(held)}")
    tensors = {
        name: torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        for name, entry in held[group].items()
    }
    load(path, {group: tensors})
    return tensors


def read_objects(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The objects saved with a step."""
    return _objects(Path(path), read_manifest(Path(path)))


def verify(
    path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """Read everything; one line for each problem, naming file and tensor. Empty: all is well.

    `progress` is told the bytes done and in all.
    """
    path = Path(path)
    try:
        manifest = read_manifest(path)
    except UserError as error:
        return [str(error)]
    problems: list[str] = []
    for name in manifest.files:
        try:
            read_head(path, manifest, name)
        except UserError as error:
            problems.append(str(error))
    spans: list[ReadSpan] = []
    for group, entries in manifest.tensors.items():
        for name, entry in entries.items():
            try:
                found = pieces(path, f"{group}/{name}", entry, whole(entry.shape))
            except UserError as error:
                problems.append(str(error))
                continue
            for piece in found:
                if (path / piece.part.file).is_file():  # else it has been named already
                    spans.append(piece.all())
    total = sum(span.size for span in spans)
    tell = (lambda done: progress(done, total)) if progress else None
    damage, _ = transfer.read_spans(path, spans, keep_going=True, progress=tell)
    first = {id(problem.span): problem for problem in reversed(damage)}  # one line a tensor's part
    problems += [explain(path, problem) for problem in reversed(first.values())]
    if progress:
        progress(total, total)
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


def _objects(path: Path, manifest: Manifest) -> dict[str, Any]:
    return {
        name: json.loads(read_head(path, manifest, object_file(name))) for name in manifest.objects
    }
