"""The list of clips: a parquet file of paths, captions and shapes, checked when opened."""

import contextlib
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vidgen.data.packages import pyarrow
from vidgen.errors import UserError
from vidgen.printable import one_line
from vidgen.runtime import files

_TEXT = ("path", "text")
_NUMBERS = {"num_frames": np.int32, "height": np.int32, "width": np.int32}
_REQUIRED = (*_TEXT, *_NUMBERS, "fps")
_MOTION = ("motion", "score_vmafmotion")  # the first one present is the caption's motion score
_SAMPLED_FILES = 64
_DIGEST = b"vidgen.digest"  # of the contents, in the file's metadata


@dataclass(frozen=True)
class Clip:
    row: int
    path: Path
    text: str
    num_frames: int
    height: int  # as displayed, after any rotation
    width: int
    fps: float  # NaN where there is none, as with images
    motion: float | None


class Manifest:
    """Rows by number; the numeric columns as arrays, so that 10^8 clips are assigned at once."""

    def __init__(self, path: Path, table: Any) -> None:
        self.path = path
        self.num_frames = _numbers(path, table, "num_frames")
        self.height = _numbers(path, table, "height")
        self.width = _numbers(path, table, "width")
        self.fps = _rates(path, table)
        motion = next((name for name in _MOTION if name in table.column_names), None)
        self.motion = None if motion is None else _floats(path, table, motion)
        self._paths = _strings(path, table, "path")
        self._texts = _strings(path, table, "text")
        self.digests = {
            "path": _text_digest(self._paths),
            "text": _text_digest(self._texts),
            "num_frames": _digest(self.num_frames.tobytes()),
            "height": _digest(self.height.tobytes()),
            "width": _digest(self.width.tobytes()),
            "fps": _digest(self.fps.tobytes()),
        }
        """A short hash a column: a resume can say which one changed."""
        if self.motion is not None:
            self.digests["motion"] = _digest(self.motion.tobytes())

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], check: Literal["sample", "all"] = "sample"
    ) -> "Manifest":
        """Read and check columns and values; look for `check` of the files."""
        arrow = pyarrow("Reading a manifest")
        path = Path(path)
        if not path.is_file():
            raise UserError(f"manifest {path} is not a file; expected a parquet file of clips")
        with _refusing(path):
            schema = arrow.parquet.read_schema(path)
            names, digest = list(schema.names), (schema.metadata or {}).get(_DIGEST)
        missing = [name for name in _REQUIRED if name not in names]
        if missing:
            raise UserError(
                f"manifest {path} lacks the column(s) {', '.join(missing)}; it has "
                f"{', '.join(names)}; expected {', '.join(_REQUIRED)}"
            )
        wanted = [name for name in (*_REQUIRED, *_MOTION) if name in names]
        with _refusing(path):
            table = arrow.parquet.read_table(path, columns=wanted, page_checksum_verification=True)
            manifest = cls(path, table)
        if digest is not None and digest != manifest.hash.encode():
            raise UserError(
                f"manifest {path} does not match the digest it holds: it is damaged, or a program "
                "has changed it and kept its metadata; restore it, or write it again without the "
                f"metadata key {_DIGEST.decode()}"
            )
        if not len(manifest):
            raise UserError(f"manifest {path} has no rows; expected at least one clip")
        manifest._look_for_files(check)
        return manifest

    def __len__(self) -> int:
        return len(self.num_frames)

    def __getitem__(self, row: int) -> Clip:
        motion = None if self.motion is None else float(self.motion[row])
        return Clip(
            row=row,
            path=self.path.parent / self._paths[row].as_py(),
            text=self._texts[row].as_py(),
            num_frames=int(self.num_frames[row]),
            height=int(self.height[row]),
            width=int(self.width[row]),
            fps=float(self.fps[row]),
            motion=None if motion is None or math.isnan(motion) else motion,
        )

    @property
    def hash(self) -> str:
        """Of the contents that matter: neither the file's place nor its compression counts."""
        return _digest(repr((len(self), sorted(self.digests.items()))).encode())

    def _look_for_files(self, check: Literal["sample", "all"]) -> None:
        count = len(self) if check == "all" else min(len(self), _SAMPLED_FILES)
        rows = np.linspace(0, len(self) - 1, count).astype(int)
        lost = [p for p in (self[row].path for row in rows) if not p.is_file()]
        if lost:
            raise UserError(
                f"manifest {self.path}: {len(lost)} of {count} files looked for are missing, the "
                f"first is {lost[0]}; relative paths count from {self.path.parent.resolve()}"
            )


def write_manifest(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with at least the required columns; the file appears whole or not at all."""
    arrow = pyarrow("Writing a manifest")
    path, rows = Path(path), list(rows)
    for number, row in enumerate(rows):
        missing = [name for name in _REQUIRED if name not in row]
        if missing:
            raise ValueError(f"row {number} lacks {', '.join(missing)}")
    types = {"path": arrow.string(), "text": arrow.string(), "fps": arrow.float64()} | {
        name: arrow.int32() for name in _NUMBERS
    }
    extra = dict.fromkeys(name for row in rows for name in row if name not in types)
    columns = {
        name: arrow.array([row.get(name) for row in rows], type=types.get(name))
        for name in (*_REQUIRED, *extra)
    }
    table = arrow.table(columns)
    with contextlib.suppress(UserError):  # values that opening will refuse
        table = table.replace_schema_metadata({_DIGEST: Manifest(path, table).hash})
    with files.replacing(path) as temporary:
        arrow.parquet.write_table(table, temporary, write_page_checksum=True)


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Damage becomes one line: in a damaged file Arrow raises many types beside its own."""
    arrow = pyarrow("Reading a manifest")
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, arrow.ArrowException):
            raise UserError(f"manifest {path} is not a parquet file: {_one_line(error)}") from error
        raise UserError(f"manifest {path} cannot be read: {error.strerror}") from error
    except (
        arrow.ArrowException, ValueError, KeyError, IndexError, TypeError, OverflowError,
        MemoryError, RuntimeError,
    ) as error:  # fmt: skip
        raise UserError(f"manifest {path} is not a parquet file: {_one_line(error)}") from error


def _numbers(path: Path, table: Any, name: str) -> np.ndarray:
    values = _floats(path, table, name)
    bad = np.flatnonzero(~(values >= 1) | (values != np.floor(values)) | (values > 2**31 - 1))
    if len(bad):
        raise UserError(
            f"manifest {path}: {name} of row {bad[0]} is {values[bad[0]]:g}; expected a whole "
            f"number of at least 1 ({len(bad)} such rows)"
        )
    return values.astype(_NUMBERS[name])


def _floats(path: Path, table: Any, name: str) -> np.ndarray:
    """Null becomes NaN."""
    arrow = pyarrow("Reading a manifest")
    column = table.column(name)
    try:
        return column.cast(arrow.float64()).to_numpy()
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError) as error:
        raise UserError(
            f"manifest {path}: column {name} holds {column.type}; expected numbers"
        ) from error


def _rates(path: Path, table: Any) -> np.ndarray:
    """NaN where there is none, as with images."""
    values = _floats(path, table, "fps")
    bad = np.flatnonzero((values <= 0) | np.isinf(values))
    if len(bad):
        raise UserError(
            f"manifest {path}: fps of row {bad[0]} is {values[bad[0]]:g}; expected a positive "
            f"number, or none for an image ({len(bad)} such rows)"
        )
    return values


def _strings(path: Path, table: Any, name: str) -> Any:
    arrow = pyarrow("Reading a manifest")
    column = table.column(name)
    if column.null_count:
        raise UserError(
            f"manifest {path}: {column.null_count} rows have no {name}; fill or drop them"
        )
    try:
        column.validate(full=True)  # that it is UTF-8
        return column.cast(arrow.large_string())
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError) as error:
        raise UserError(
            f"manifest {path}: column {name} holds {column.type}; expected text"
        ) from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _text_digest(column: Any) -> str:
    """Of lengths and bytes, so that how the file is cut into row groups does not count."""
    lengths, contents = hashlib.sha256(), hashlib.sha256()
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        lengths.update(np.diff(ends).tobytes())
        if data is not None:
            contents.update(memoryview(data)[ends[0] : ends[-1]])
    return _digest(lengths.digest() + contents.digest())


def _one_line(error: Exception) -> str:
    return one_line((str(error).splitlines() or [type(error).__name__])[0])
