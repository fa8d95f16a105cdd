"""metrics.jsonl: one JSON object per step, with a consistent history across resumes."""

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
    """Every step recorded under `run_dir`, oldest first; an incomplete last line is ignored."""
    path = Path(run_dir) / FILE_NAME
    if not path.is_file():
        raise UserError(f"no {FILE_NAME} in {run_dir}: expected the directory of a training run")
    records, _ = _parse(path)
    return records


class MetricsFile:
    """Appends and flushes records to metrics.jsonl, after dropping steps that will be repeated."""

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
        """Rewrite the file atomically, without later steps and without an incomplete last line.

        A fresh run (resume_step 0) keeps nothing.
        """
        records, torn = _parse(self.path)
        self.kept = [r for r in records if 0 < resume_step >= r["step"]]
        self.dropped = len(records) - len(self.kept)
        if not self.dropped and not torn:
            return
        files.write_text(self.path, "".join(map(_encode, self.kept)))


class RunningZScore:
    """The z-score of a value relative to a sliding window of earlier values."""

    def __init__(self, window: int = 128, at_least: int = 16) -> None:
        self._values: deque[float] = deque(maxlen=window)
        self._at_least = at_least

    def update(self, value: float) -> float | None:
        """The z-score of `value`, or None while there are too few earlier values.

        A non-finite value has score nan and is not added to the window.
        """
        if not math.isfinite(value):
            return math.nan
        score = None
        if len(self._values) >= self._at_least:
            mean = math.fsum(self._values) / len(self._values)
            variance = math.fsum((v - mean) ** 2 for v in self._values) / len(self._values)
            # Values equal up to rounding have no usable deviation.
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
    """Encode nan and inf as strings, as strict JSON has neither; `_parse` restores them."""
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
    """Records of the file, and whether its last line is incomplete after a crash."""
    # A crash can truncate a multi-byte character: decode line by line.
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
