"""Resumable work: items shared over ranks, whose results are found again by content key.

`run` gives each rank its share of the items and counts what `process` yields for them: one outcome
an item. `ResultFolder` keeps the results, one file a key, so that a run that was stopped or killed
continues where it was, with any number of ranks. `by_key` is the plain `process`: look the result
up, else compute and keep it.
"""

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from vidgen import limits
from vidgen.errors import UserError
from vidgen.runtime import files
from vidgen.runtime.crc32c import crc32c

_log = logging.getLogger(__name__)
_RATE_OVER = 64  # the last items that the rate is measured over

Item = TypeVar("Item")


class ResultFolder:
    """One file a result, `<key[:2]>/<key><suffix>`, and a file of the settings that made them."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        settings: Mapping[str, Any],
        *,
        settings_name: str = "settings.json",
        suffix: str = ".json",
        label: str = "results",
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """Open or create the folder; one made with other settings is refused, naming the field.

        `defaults` are the settings of folders that name none of their own."""
        self.root, self.suffix = Path(root), suffix
        path = self.root / settings_name
        requested = json.loads(json.dumps(settings))
        if not path.is_file():
            files.write_text(path, json.dumps(sealed(requested), indent=1))
            return
        found = files.read_json(path, at_most=limits.JSON_BYTES, expect=dict)
        made_with = dict(defaults or {}) | unsealed(path, found)
        for name, there, here in _differences(made_with, requested):
            raise UserError(
                f"the {label} {self.root} was made with {name}={there}, this run has {here}; "
                "name another folder, or delete this one"
            )

    def path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}{self.suffix}"

    def write(self, key: str, content: bytes) -> None:
        """Keep bytes that carry their own checksum: a power failure may damage them."""
        files.write_bytes(self.path(key), content, durable=False)

    def sweep(self) -> None:
        """Remove what killed processes left half written."""
        for folder in self.root.glob("??"):
            files.remove_leftovers(folder)


def sealed(value: Any) -> dict[str, Any]:
    """A JSON value with its checksum."""
    return {"value": value, "crc32c": _json_crc(value)}


def unsealed(path: Path, found: Any) -> Any:
    """The value; a damaged file is refused by name. Files of older versions hold it as it is."""
    if not isinstance(found, dict) or found.keys().isdisjoint(("value", "crc32c")):
        return found
    if found.keys() != {"value", "crc32c"} or found["crc32c"] != _json_crc(found["value"]):
        raise UserError(
            f"{path} is damaged: its CRC32C does not match its contents; restore it from a copy"
        )
    return found["value"]


def _json_crc(value: Any) -> str:
    return f"{crc32c(json.dumps(value, sort_keys=True).encode()):08x}"


class JsonResults(ResultFolder):
    """Results that are JSON values."""

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON value with its checksum."""
        text = json.dumps(value)
        record = {"crc32c": f"{crc32c(text.encode()):08x}", "value": value}
        self.write(key, json.dumps(record).encode())

    def get(self, key: str) -> Any:
        """The value; None where there is none, or (logged) where its file is damaged."""
        path = self.path(key)
        try:
            record = json.loads(path.read_bytes())
            value, written = record["value"], record["crc32c"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, OSError, RecursionError):
            log_damage(path, "cannot be read")
            return None
        if f"{crc32c(json.dumps(value).encode()):08x}" != written:
            log_damage(path, "has another checksum than when it was written")
            return None
        return value


def log_damage(path: Path, reason: str) -> None:
    _log.warning("%s is damaged and counts as missing: it %s", path, reason)


class Outcome(Enum):
    CACHED = "cached"
    COMPUTED = "computed"


@dataclass(frozen=True)
class Failed:
    """The outcome of an item that cannot be processed."""

    reason: str


Outcomes = Generator[Outcome | Failed, None, None]


@dataclass(frozen=True)
class Counts:
    """What became of the items of one rank, or of all."""

    total: int
    cached: int = 0
    computed: int = 0
    failed: int = 0

    @property
    def done(self) -> int:
        return self.cached + self.computed + self.failed

    def plus(self, outcome: Outcome | Failed) -> "Counts":
        name = "failed" if isinstance(outcome, Failed) else outcome.value
        return replace(self, **{name: getattr(self, name) + 1})

    def over_ranks(self, device: torch.device | str = "cpu") -> "Counts":
        """The sum over all ranks, on every rank."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return self
        sums = torch.tensor(astuple(self), device=device)
        dist.all_reduce(sums)
        return Counts(*sums.tolist())

    def __str__(self) -> str:
        failed = f" / failed {self.failed}" if self.failed else ""
        return f"cached {self.cached} / computed {self.computed}{failed}"


@dataclass(frozen=True)
class Progress:
    counts: Counts
    per_s: float  # of the last items; nan before the second

    @property
    def remaining_s(self) -> float:
        return (self.counts.total - self.counts.done) / self.per_s

    def __str__(self) -> str:
        if not self.per_s > 0:
            return str(self.counts)
        minutes, seconds = divmod(round(self.remaining_s), 60)
        hours, minutes = divmod(minutes, 60)
        rest = f"{hours}:{minutes:02d}:{seconds:02d}"
        return f"{self.counts}, {self.per_s:.3g}/s, {rest} remaining"


@dataclass(frozen=True)
class FailureLimit:
    """How many items may fail before the run stops, and how messages name things."""

    limit: int
    setting: str  # what the user changes, as `data.bad_clip_limit`
    items: str = "items"
    name: Callable[[Any], str] = str  # of one item


def run(
    items: Sequence[Item],
    process: Callable[[Sequence[Item]], Outcomes],
    *,
    failures: FailureLimit,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[Progress], None] | None = None,
) -> Counts:
    """Process this rank's share of the items; every rank passes all of them in the same order.

    `process(share)` yields one outcome an item, in order, and keeps a result before it yields. No
    result stays in memory here. `progress` is called after each item. Returns this rank's counts.
    """
    share = items[rank::world]
    counts = Counts(len(share))
    finished_at = deque([time.monotonic()], maxlen=_RATE_OVER)
    if not share:
        return counts
    outcomes = process(share)
    try:
        for item, outcome in zip(share, outcomes, strict=True):
            counts = counts.plus(outcome)
            if isinstance(outcome, Failed):
                _skip(item, outcome.reason, counts.failed, failures)
            finished_at.append(time.monotonic())
            if progress is not None:
                seconds = finished_at[-1] - finished_at[0]
                rate = (len(finished_at) - 1) / seconds if seconds else float("nan")
                progress(Progress(counts, rate))
    finally:
        outcomes.close()  # which stops the workers it has
    return counts


def by_key(
    results: JsonResults, key: Callable[[Item], str], compute: Callable[[Item], Any]
) -> Callable[[Sequence[Item]], Outcomes]:
    """A `process` for `run`: the item's JSON value from `results`, or computed and kept there.

    `compute` raises ValueError for an item that cannot be processed.
    """

    def process(share: Sequence[Item]) -> Outcomes:
        for item in share:
            name = key(item)
            if results.get(name) is not None:
                yield Outcome.CACHED
                continue
            try:
                value = compute(item)
            except ValueError as error:
                yield Failed(str(error))
                continue
            results.put(name, value)
            yield Outcome.COMPUTED

    return process


def _skip(item: Any, reason: str, failed: int, failures: FailureLimit) -> None:
    name = failures.name(item)
    _log.warning("%s is skipped: %s", name, reason)
    if failed > failures.limit:
        raise UserError(
            f"{failed} {failures.items} failed, more than "
            f"{failures.setting}={failures.limit}; the last is {name}: {reason}"
        )


def _differences(there: Any, here: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(field, its value there, its value here) wherever two JSON values differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        found = []
        for key in {**there, **here}:
            inner = f"{name}.{key}" if name else key
            found += _differences(there.get(key), here.get(key), inner)
        return found
    return [] if there == here else [(name, there, here)]
