"""Loading: any world size and any sharding reads any other's."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidgen.errors import UserError
from vidgen.runtime.checkpoint.layout import (
    DTYPE_NAMES,
    DTYPES,
    Box,
    Manifest,
    Slice,
    TensorEntry,
    local_part,
    object_file,
    read_manifest,
    whole,
)
from vidgen.runtime.checkpoint.reader import Reader

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
    with Reader(path, manifest) as files:
        fills: list[Callable[[], None]] = []
        for group, members in tensors.items():
            for name, tensor in members.items():
                local, box = local_part(tensor)
                entry = manifest.tensors[group][name]
                fills += _fills(files, f"{group}/{name}", entry, local, box)
        _run_all(fills)
    return _objects(path, manifest)


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

    with Reader(path, manifest) as files:
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
    files: Reader, label: str, entry: TensorEntry, local: Tensor, box: Box
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
    with Reader(path, manifest) as files:
        return {name: json.loads(files.head(object_file(name))) for name in manifest.objects}
