"""Files of prompts: one a line, or a table with settings of their own (csv, jsonl)."""

import csv
import difflib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vidgen import limits
from vidgen.diffusion.condition_names import check_condition
from vidgen.errors import UserError
from vidgen.runtime import files


def _words(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is not text")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value):
        raise ValueError("is not a whole number")
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError("is not a number")
    return float(value)


def _condition(value: Any) -> str:
    try:
        return check_condition(_words(value))
    except ValueError as error:
        raise ValueError("is " + str(error).partition(" is ")[2]) from None


def _files(value: Any) -> list[str]:
    """One file, several with ";" between them, or a list."""
    return [_words(v).strip() for v in (value if isinstance(value, list) else value.split(";"))]


FIELDS: dict[str, Callable[[Any], Any]] = {
    "prompt": _words,
    "negative": _words,
    "seed": _whole,
    "condition": _condition,
    "ref": _files,
    "frames": _whole,
    "height": _whole,
    "width": _whole,
    "resolution": _words,
    "aspect": _words,
    "fps": _number,
    "steps": _whole,
    "guidance": _number,
    "guidance_img": _number,
    "motion_score": _number,
}


def read_prompts(path: str | Path) -> list[str | dict[str, Any]]:
    """What `make_requests` takes as prompts; an empty cell of a csv says nothing."""
    path = Path(path)
    try:
        text = files.read_text(path, at_most=limits.PROMPTS_BYTES, encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"--prompts {path}: {error.strerror}") from None
    found: list[str | dict[str, Any]]
    if path.suffix in (".csv", ".jsonl"):
        rows = _csv_rows(path, text) if path.suffix == ".csv" else _jsonl_rows(path, text)
        found = [_row(f"--prompts {path} line {line}", row) for line, row in rows]
    else:
        found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise UserError(f"--prompts {path}: the file holds no prompt; write one a line")
    return found


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"--prompts {path} line {reader.line_num}: has another number of cells than "
                    "the first line; put texts with commas in quotes"
                )
            yield reader.line_num, {k.strip(): v for k, v in row.items() if v.strip()}
    except csv.Error as error:
        raise UserError(f"--prompts {path} line {reader.line_num}: {error}") from None


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"--prompts {path} line {number}: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f'--prompts {path} line {number}: expected {{"prompt": "..."}}')
            yield number, row


def _row(where: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in fields.items():
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(FIELDS)}"
            raise UserError(f"{where}: unknown field {name!r} ({hint})")
        try:
            found[name] = FIELDS[name](value)
        except (ValueError, TypeError, AttributeError) as error:
            why = str(error) if str(error).startswith("is ") else "is not what it should be"
            raise UserError(f"{where}: {name} {value!r} {why}") from None
    if "prompt" not in found:
        raise UserError(f"{where}: has no 'prompt'")
    return found
