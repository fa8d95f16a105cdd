"""A manifest from what people have: a folder of clips with captions beside them, or a CSV."""

import csv
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from vidgen import limits
from vidgen.data.packages import pyarrow, pyav
from vidgen.data.read.packets import BadClip
from vidgen.data.read.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, probe
from vidgen.errors import UserError
from vidgen.runtime import files

_MOTION = ("motion", "score_vmafmotion")


@dataclass(frozen=True)
class Listed:
    path: Path
    text: str
    extra: Mapping[str, float] = field(default_factory=dict)  # motion score, by its column's name


@dataclass
class Collected:
    rows: list[dict[str, Any]]
    bad: list[tuple[Path, str]]  # clips that cannot be read, and why


def listed(source: str | os.PathLike[str]) -> list[Listed]:
    """The clips of a folder, in the order of their names, or of a CSV, in its own."""
    source = Path(source)
    if source.is_dir():
        return _from_folder(source)
    if source.suffix.lower() == ".csv" and source.is_file():
        return _from_csv(source)
    raise UserError(
        f"{source} is neither a folder of clips nor a .csv file with the columns path and text"
    )


def collect(
    clips: Sequence[Listed],
    relative_to: Path,
    workers: int,
    progress: Callable[[], object] = lambda: None,
) -> Collected:
    """Look into every file; rows are a manifest's, for one that will lie in `relative_to`."""
    pyav("Looking into clips")
    found = Collected([], [])
    with ThreadPoolExecutor(workers) as pool:
        for clip, info in zip(clips, pool.map(_look, clips), strict=True):
            progress()
            if isinstance(info, str):
                found.bad.append((clip.path, info))
                continue
            path = clip.path.resolve()
            inside = path.is_relative_to(relative_to.resolve())
            name = path.relative_to(relative_to.resolve()) if inside else path
            found.rows.append({"path": str(name), "text": clip.text, **info, **clip.extra})
    return found


def write_left_out(path: Path, bad: Sequence[tuple[Path, str]]) -> None:
    with (
        files.replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["path", "why"])
        writer.writerows([[str(clip), why] for clip, why in bad])


def check_out(out: Path) -> None:
    """Before hours of looking into files."""
    pyarrow("Writing a manifest")
    if out.suffix != ".parquet":
        raise UserError(f"--out {out} does not end in .parquet, which a manifest is")
    if out.exists():
        raise UserError(
            f"{out} is there already, and a run on it could not resume with another; remove it or "
            "give another --out"
        )


def _look(clip: Listed) -> dict[str, Any] | str:
    try:
        info = probe(clip.path)
    except BadClip as error:
        return str(error)
    return {
        "num_frames": info.num_frames,
        "height": info.height,
        "width": info.width,
        "fps": info.fps,
    }


def _from_folder(folder: Path) -> list[Listed]:
    suffixes = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
    clips = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    if not clips:
        raise UserError(f"{folder} holds no clips: files that end in {', '.join(suffixes)}")
    silent = [path for path in clips if not path.with_suffix(".txt").is_file()]
    if silent:
        raise UserError(
            f"{len(silent)} of {len(clips)} clips in {folder} have no caption beside them; the "
            f"first is {silent[0]}, whose caption belongs into {silent[0].with_suffix('.txt').name}"
            " (or name clips and captions in a CSV with the columns path and text)"
        )
    for one, other in pairwise(clips):
        if one.with_suffix("") == other.with_suffix(""):
            raise UserError(f"{one} and {other.name} have one caption for both; rename one of them")
    return [Listed(path, _caption(path.with_suffix(".txt"))) for path in clips]


def _caption(path: Path) -> str:
    text = " ".join(files.read_text(path, at_most=limits.METADATA_BYTES).split())
    if not text:
        raise UserError(f"caption {path} is empty; write one, or remove the clip")
    return text


def _from_csv(source: Path) -> list[Listed]:
    text = files.read_text(source, at_most=limits.TABLE_BYTES, encoding="utf-8-sig")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = list(reader.fieldnames or [])
    missing = [name for name in ("path", "text") if name not in columns]
    if missing:
        raise UserError(
            f"{source} lacks the column(s) {', '.join(missing)}; it has {', '.join(columns)}"
        )
    motion = next((name for name in _MOTION if name in columns), None)
    try:
        clips = list(_csv_clips(source, reader, motion))
    except csv.Error as error:
        raise UserError(f"{source} line {reader.line_num} is not CSV: {error}") from error
    if not clips:
        raise UserError(f"{source} has no rows; expected at least one clip")
    return clips


def _csv_clips(source: Path, reader: "csv.DictReader[str]", motion: str | None) -> Iterator[Listed]:
    for row in reader:
        where = f"{source} line {reader.line_num}"
        path, text = ((row[name] or "").strip() for name in ("path", "text"))
        if not path or not text:
            raise UserError(f"{where} has no {'text' if path else 'path'}")
        extra = {} if motion is None else {motion: _score(row[motion], where)}
        yield Listed(source.parent / path, " ".join(text.split()), extra)


def _score(cell: str | None, where: str) -> float:
    """NaN where a clip has none."""
    if cell is None or not cell.strip():
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise UserError(f"{where} has a motion score {cell!r}; expected a number") from None
