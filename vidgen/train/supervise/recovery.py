"""Batches that a run skips after they made its loss bad."""

import json
from collections.abc import Iterable
from pathlib import Path

from vidgen import limits
from vidgen.data.loader import Loader
from vidgen.errors import UserError
from vidgen.runtime import files, work

Position = tuple[int, int]  # epoch, step of the epoch: the same batch on every rank


class SkipList:
    """Positions of batches a run skips, after a bad loss they came with; in `skip.json`."""

    def __init__(self, run_dir: Path, *, load: bool = True) -> None:
        """`load` reads those that the run directory already names."""
        self._path = run_dir / "skip.json"
        self.positions: set[Position] = set()
        if load and self._path.exists():
            self.positions = set(_read(self._path))

    def add(self, positions: Iterable[Position], *, write: bool) -> None:
        """Every rank adds the same; one writes."""
        self.positions |= set(positions)
        if write:
            listed = sorted(self.positions)
            files.write_text(self._path, json.dumps(work.sealed(listed)))

    def advance(self, loader: Loader) -> None:
        """Move the loader to its next step whose batches are not listed."""
        while self.positions and position(loader) in self.positions:
            loader.skip(1)


def _read(path: Path) -> list[Position]:
    """Refuses a damaged file: a run that skips other batches than before is another run."""
    text = files.read_text(path, at_most=limits.JSON_BYTES).lstrip()
    kind = list if text.startswith("[") else dict  # a list alone: files of older versions
    found = work.unsealed(path, files.read_json(path, at_most=limits.JSON_BYTES, expect=kind))
    if not isinstance(found, list) or not all(_is_position(entry) for entry in found):
        raise UserError(
            f"{path} is damaged: expected a list of [epoch, step]; restore it from a copy, or "
            "delete it to skip no batches"
        )
    return [(epoch, step) for epoch, step in found]


def _is_position(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and all(type(number) is int and number >= 0 for number in entry)
    )


def position(loader: Loader) -> Position:
    """Of the step whose batch the loader returns next."""
    state = loader.state_dict()
    if state["step"] == loader.steps_in_epoch:
        return state["epoch"] + 1, 0
    return state["epoch"], state["step"]
