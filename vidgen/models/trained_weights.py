"""The weights in a training checkpoint, read a tensor at a time whatever its sharding."""

import json
from pathlib import Path
from types import TracebackType

from torch import Tensor

from vidgen.errors import UserError
from vidgen.models.tensor_files import TensorInfo
from vidgen.runtime.checkpoint import read_objects
from vidgen.runtime.checkpoint.layout import DTYPES, Box, read_manifest
from vidgen.runtime.checkpoint.reader import Reader


class TrainedWeights:
    """One group of a step's folder: "model", or "ema" for the averaged weights."""

    readers = 1

    def __init__(self, step: Path, group: str) -> None:
        self.where = f"{step} ({group})"
        manifest = read_manifest(step)
        if group not in manifest.tensors:
            has = ", ".join(sorted(manifest.tensors))
            raise UserError(f"{step}: holds no '{group}'; it holds {has}")
        self._group = group
        self._entries = manifest.tensors[group]
        self.infos = {
            name: TensorInfo(DTYPES[entry.dtype], entry.shape)
            for name, entry in self._entries.items()
        }
        self.metadata = {"vidgen.layout": "vidgen"}
        recipe = read_objects(step).get("recipe", {})
        if "model" in recipe:
            self.metadata["vidgen.config"] = json.dumps(recipe["model"])
        self._files = Reader(step, manifest)

    def read(self, name: str, out: Tensor, row: int = 0) -> None:
        entry, filled = self._entries[name], 0
        wanted = Box((row, *(0 for _ in out.shape[1:])), tuple(out.shape))
        for part in entry.slices:
            if (common := part.box.intersect(wanted)) is None:
                continue
            index = common.slices_within(part.box)
            inside = Box(tuple(s.start for s in index), common.shape)
            stored = self._files.read(f"{self._group}/{name}", entry.dtype, part, inside)
            out[common.slices_within(wanted)].copy_(stored[index])
            filled += common.numel
        if filled != wanted.numel:
            raise UserError(f"{self.where}: lacks {wanted.numel - filled} elements of '{name}'")

    def __enter__(self) -> "TrainedWeights":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.__exit__(kind, error, trace)
