"""Batches that a run skips after they made its loss bad."""

import json
from collections.abc import Iterable
from pathlib import Path

from vidgen.data.loader import Loader
from vidgen.runtime import files

Position = tuple[int, int]  # epoch, step of the epoch: the same batch on every rank


class SkipList:
    """Positions of batches a run skips, after a bad loss they came with; in `skip.json`."""

    def __init__(self, run_dir: Path, *, load: bool = True) -> None:
        """`load` reads those that the run directory already names."""
        self._path = run_dir / "skip.json"
        self.positions: set[Position] = set()
        if load and self._path.exists():
            self.positions = {(epoch, step) for epoch, step in json.loads(self._path.read_text())}

    def add(self, positions: Iterable[Position], *, write: bool) -> None:
        """Every rank adds the same; one writes."""
        self.positions |= set(positions)
        if write:
            files.write_text(self._path, json.dumps(sorted(self.positions)))

    def advance(self, loader: Loader) -> None:
        """Move the loader to its next step whose batches are not listed."""
        while self.positions and position(loader) in self.positions:
            loader.skip(1)


def position(loader: Loader) -> Position:
    """Of the step whose batch the loader returns next."""
    state = loader.state_dict()
    if state["step"] == loader.steps_in_epoch:
        return state["epoch"] + 1, 0
    return state["epoch"], state["step"]
