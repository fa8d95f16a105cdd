"""The weights in a training checkpoint, read a tensor at a time whatever its sharding."""

import json
from pathlib import Path

from torch import Tensor

from vidgen.models.tensor_files import TensorInfo
from vidgen.runtime.checkpoint import GroupReader, read_objects


class TrainedWeights:
    """One group of a step's folder: "model", or "ema" for the averaged weights."""

    readers = 1

    def __init__(self, step: Path, group: str) -> None:
        self.where = f"{step} ({group})"
        self._files = GroupReader(step, group)
        self.infos = {name: TensorInfo(*info) for name, info in self._files.shapes().items()}
        objects = read_objects(step)
        self.metadata = {"vidgen.layout": objects.get("layout", "vidgen")}  # imported: as recorded
        recipe = objects.get("recipe", {})
        if "model" in recipe:
            self.metadata["vidgen.config"] = json.dumps(recipe["model"])

    def read(self, name: str, out: Tensor, row: int = 0) -> None:
        self._files.read(name, out, row)

    def __enter__(self) -> "TrainedWeights":
        return self

    def __exit__(self, *_: object) -> None:
        """Every read opens and closes its file: nothing is left to close."""
