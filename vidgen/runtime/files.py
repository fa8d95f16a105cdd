"""Atomic file writes: a reader, or a process that is killed, never sees half a file.

`write_text` and `write_bytes` replace a file whole; `replacing` lends a temporary name beside the
file to anything that writes by itself. The steps are: write under a temporary name in the same
folder, fsync the file, rename it, fsync the folder. What a killed process leaves behind is
removed by `remove_leftovers`.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidgen.errors import UserError

StrPath = str | os.PathLike[str]

_JSON_NAMES: dict[type, str] = {dict: "a JSON object", list: "a JSON list"}
_ABANDONED_S = 3600.0  # no file takes so long to write
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]+\.tmp")


def write_text(path: StrPath, text: str, *, durable: bool = True) -> None:
    """Replace the file by `text` in UTF-8; its folder is created where it is missing."""
    write_bytes(path, text.encode(), durable=durable)


def write_bytes(path: StrPath, data: bytes, *, durable: bool = True) -> None:
    """Replace the file by `data`; its folder is created where it is missing."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def read_bytes(path: StrPath, *, at_most: int) -> bytes:
    """The bytes of a file that a user names; a missing one raises FileNotFoundError, all else that
    the system refuses and a file larger than `at_most` raises UserError."""
    operation = "open"
    try:
        with open(path, "rb") as file:
            operation = "read"
            data = file.read(at_most + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error} (operation: {operation})"
        ) from error
    if len(data) > at_most:
        raise UserError(f"{path} has more than {at_most} bytes, which is the most that is read")
    return data


def read_text(path: StrPath, *, at_most: int, encoding: str = "utf-8") -> str:
    """The text of such a file."""
    data = read_bytes(path, at_most=at_most)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}") from None


def read_json(path: StrPath, *, at_most: int, expect: type) -> Any:
    """The JSON value of such a file: a mapping or a list, as `expect` says."""
    try:
        value = json.loads(read_text(path, at_most=at_most))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not JSON ({error})") from None
    if not isinstance(value, expect):
        raise UserError(f"{path} is damaged: expected {_JSON_NAMES[expect]}")
    return value


@contextlib.contextmanager
def replacing(path: StrPath, *, durable: bool = True) -> Iterator[Path]:
    """A temporary name to write to; when the block ends, that file becomes `path`.

    If the block raises, `path` stays as it was. `durable=False` skips both fsyncs, for what can be
    made again: after a power failure the file may be damaged. What the system refuses raises
    UserError, which names the file and the operation.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    operation = "create the folder"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        operation = "write"
        yield temporary
        if durable:
            operation = "fsync"
            _sync(temporary, os.O_RDONLY)
        operation = "rename"
        os.replace(temporary, path)
        if durable:
            operation = "fsync the folder"
            try:
                sync_directory(path.parent)
            except OSError as error:  # some network file systems cannot
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                    raise
    except OSError as error:
        if not _concerns(error, path, temporary):
            raise
        raise UserError(
            f"{path} cannot be written: {error.strerror or error} (operation: {operation})"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: StrPath, *, older_than_s: float = _ABANDONED_S) -> None:
    """Remove the temporary files in a folder that killed processes left behind."""
    for path in Path(folder).glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if _LEFTOVER.fullmatch(path.name) and time.time() - path.stat().st_mtime > older_than_s:
                path.unlink()


def sync_directory(path: StrPath) -> None:
    """Make the names in a directory durable."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def create(path: StrPath, data: bytes) -> None:
    """Write a new file and make its bytes durable; its name still needs `sync_directory`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with open(descriptor, "wb", buffering=0) as file:
        rest = memoryview(data)
        while rest:  # a write may take fewer bytes than it is given
            rest = rest[file.write(rest) :]
        os.fsync(descriptor)


def _sync(path: StrPath, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _concerns(error: OSError, path: Path, temporary: Path) -> bool:
    """Whether an error is about the file being written, and not about another that its writer
    reads."""
    return error.filename is None or Path(os.fsdecode(error.filename)) in (
        path,
        temporary,
        path.parent,
        *path.parents,
    )
