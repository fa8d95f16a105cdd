"""metrics.jsonl: one JSON object a step, one consistent history across crashes and resumes."""

import contextlib
import json
import math
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vidgen.errors import UserError
from vidgen.runtime import files

FILE_NAME = "metrics.jsonl"
Record = dict[str, Any]


def read_metrics(run_dir: str | Path) -> list[Record]:
    """Every step recorded under `run_dir`, oldest first; a torn last line is left out."""
    path = Path(run_dir) / FILE_NAME
    if not path.is_file():
        raise UserError(f"no {FILE_NAME} in {run_dir}: expected the directory of a training run")
    records, _ = _parse(path)
    return records


class MetricsFile:
    """Appends records to metrics.jsonl, each flushed, after dropping what a resume will redo."""

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / FILE_NAME
        self.kept: list[Record] = []
        self.dropped = 0
        if self.path.exists():
            self._keep_until(resume_step)
        self._file = self.path.open("ab", buffering=0)
        self._pending = bytearray()  # what the storage has not taken yet

    def append(self, record: Record) -> OSError | None:
        """An error leaves the lines in memory, and the next call writes them all."""
        self._pending += _encode(record).encode()
        try:
            while self._pending:
                del self._pending[: self._file.write(self._pending)]
        except OSError as error:
            return error
        return None

    def close(self) -> None:
        if not self._file.closed and self._pending:
            with contextlib.suppress(OSError):
                self._file.write(self._pending)
        self._file.close()

    def _keep_until(self, resume_step: int) -> None:
        """Rewrite the file without later steps and without a torn last line, whole or not at all.

        A run that starts afresh (resume_step 0) keeps nothing, step 0 included.
        """
        records, torn = _parse(self.path)
        self.kept = [r for r in records if 0 < resume_step >= r["step"]]
        self.dropped = len(records) - len(self.kept)
        if not self.dropped and not torn:
            return
        files.write_text(self.path, "".join(map(_encode, self.kept)))


class RunningZScore:
    """How many standard deviations a value lies from those before it, over a sliding window."""

    def __init__(self, window: int = 128, at_least: int = 16) -> None:
        self._values: deque[float] = deque(maxlen=window)
        self._at_least = at_least

    def update(self, value: float) -> float | None:
        """The score of `value` against the earlier ones, or None while there are too few.

        A non-finite value scores nan and is kept out of the window, which it would poison.
        """
        if not math.isfinite(value):
            return math.nan
        score = None
        if len(self._values) >= self._at_least:
            mean = math.fsum(self._values) / len(self._values)
            variance = math.fsum((v - mean) ** 2 for v in self._values) / len(self._values)
            # Values that agree to rounding have no spread to measure by.
            if variance > (1e-9 * mean) ** 2:
                score = (value - mean) / math.sqrt(variance)
        self._values.append(value)
        return score

    def extend(self, values: Iterable[float]) -> None:
        for value in values:
            if math.isfinite(value):
                self._values.append(value)


def _encode(record: Record) -> str:
    return json.dumps(_finite(record), allow_nan=False, separators=(", ", ": ")) + "\n"


def _finite(value: Any) -> Any:
    """Strict JSON has no nan or inf: they are written as strings, which `_parse` turns back."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _restore(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _restore(item) for key, item in value.items()}
    return float(value) if value in ("nan", "inf", "-inf") else value


def _parse(path: Path) -> tuple[list[Record], bool]:
    """Records of the file, and whether a crash left its last line without an end."""
    # A crash can cut a character in two: decode line by line, not the file at once.
    *lines, tail = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is None:
            raise UserError(
                f"{path} line {number} is not a step's record: found {line[:40]!r}, expected "
                f"a JSON object with a step; restore the file or move it away"
            )
        records.append(record)
    last = _record(tail)
    if last is not None:
        records.append(last)
    return records, tail != b""


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    restored: Record = _restore(record)
    return restored
