"""Benchmark results: one JSON file per suite and machine, and the printed table.

A row is a mapping: what was run (shape, dtype, implementation), its figures, and the rulers and
peers measured in the same run. Figures carry their unit in the name: `gb_per_s`, `ms`,
`fraction_of_copy`.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from vidgen import text_table
from vidgen.runtime import files
from vidgen.runtime.observe import hardware

Row = Mapping[str, Any]
FOLDER = Path("profiles/results")


def machine_name() -> str:
    """The folder's name under profiles/results: the GPU's name, else the CPU's and its cores."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        cpu = hardware.cpu()
        vendor = re.sub(r"\(.*?\)|CPU|Processor|@.*", " ", cpu["name"])
        name = f"cpu {vendor} {cpu['usable cores']}core"
    return "-".join(re.findall(r"[a-z0-9.]+", name.lower()))


def write(
    suite: str,
    rows: Sequence[Row],
    *,
    settings: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Path:
    """Write `rows` to profiles/results/<machine>/<suite>.json, or to `out`; returns the path."""
    path = Path(out) if out else FOLDER / machine_name() / f"{suite}.json"
    kept = {
        "suite": suite,
        "command": " ".join(["python", *map(_relative, sys.orig_argv[1:])]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": hardware.cpu(), "gpus": hardware.gpus()},
        "versions": hardware.versions(),
        "threads": torch.get_num_threads(),
        "settings": dict(settings or {}),
        "rows": [dict(row) for row in rows],
    }
    files.write_text(path, json.dumps(kept, indent=1, default=str) + "\n")
    return path


class Kept(list[dict[str, Any]]):
    """The rows of a suite; the file holds all that are measured whenever the run is cut short."""

    def __init__(
        self,
        suite: str,
        settings: Mapping[str, Any] | None = None,
        out: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        self.suite, self.settings, self.out = suite, dict(settings or {}), out

    def add(self, row: Row) -> None:
        self.append(dict(row))
        self.save()

    def replace(self, rows: Iterable[Row]) -> None:
        """Replace all rows, where each round of measurements changes every one of them."""
        self[:] = [dict(row) for row in rows]
        self.save()

    def save(self) -> Path:
        return write(self.suite, self, settings=self.settings, out=self.out)


def table(rows: Iterable[Row]) -> str:
    """Rows as a text table with one column per key, numbers to three digits."""
    rows = [{key: _shown(value) for key, value in row.items()} for row in rows]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [keys, *([row.get(key, "") for key in keys] for row in rows)]
    return "\n".join(text_table.table(cells, numbers=False))


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _relative(argument: str) -> str:
    """Make a path relative, since absolute paths of this machine mean nothing elsewhere."""
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
