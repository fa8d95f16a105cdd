"""Entries of the latent cache as files, for a worker process to read: no torch here."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.runtime.content_key import content_key
from vidgen.runtime.crc32c import crc32c
from vidgen.runtime.dtypes import SIZES

_HEADER_MOST = 1 << 20  # bytes; ours are a few KiB
ABSENT = "is not there"


class DamagedEntry(Exception):
    """A file that is no entry, or not as it was written; the message says how, in one line."""


@dataclass(frozen=True)
class Layout:
    """The tensors of an entry, one after the other: (name, safetensors' dtype, shape)."""

    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]

    def places(self) -> dict[str, slice]:
        """Bytes of each."""
        sizes = [math.prod(shape) * SIZES[dtype] for _, dtype, shape in self.tensors]
        ends = pairwise(accumulate(sizes, initial=0))
        return {name: slice(*place) for (name, *_), place in zip(self.tensors, ends, strict=True)}

    @property
    def nbytes(self) -> int:
        return max((place.stop for place in self.places().values()), default=0)


@dataclass(frozen=True)
class EntryRequest:
    """Reads an entry's tensors in the layout's order; answers None, or what is wrong with it.

    An entry that lacks one of them, made for other conditions, counts as `ABSENT`.
    """

    path: str
    layout: Layout
    touch: bool = False  # say in the file's time that it was used

    def __call__(self, out: np.ndarray) -> str | None:
        try:
            header, _, content = read_file(self.path)
            return self._fill(header, content, out)
        except FileNotFoundError:
            return ABSENT
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        except DamagedEntry as error:
            return str(error)
        except (KeyError, TypeError, ValueError, AttributeError):
            return "has a header that cannot be read"  # of a version that did not check it

    def _fill(self, header: dict[str, Any], content: bytes, out: np.ndarray) -> str | None:
        data = np.frombuffer(content, np.uint8)[_data_begins(content) :]
        flat = out.reshape(-1)
        for (name, dtype, shape), place in zip(
            self.layout.tensors, self.layout.places().values(), strict=True
        ):
            there = header.get(name)
            if there is None:
                return ABSENT
            if (there["dtype"], there["shape"]) != (dtype, list(shape)):
                return f"has {name} as {there['dtype']} {there['shape']}"
            flat[place] = data[slice(*there["data_offsets"])]
        if self.touch:
            with contextlib.suppress(OSError):  # dropped meanwhile, or another's file
                os.utime(self.path)
        return None


def read_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The header of an entry's file, its own record there, and all its bytes, found to be as they
    were written, under the name of what they were made of."""
    with open(path, "rb") as file:
        content = file.read()
    begin = _data_begins(content)
    if begin > min(_HEADER_MOST, len(content)):
        raise DamagedEntry("has no header")
    try:
        header: dict[str, Any] = json.loads(content[8:begin])
        record: dict[str, Any] = json.loads(header["__metadata__"]["entry"])
        written, fields = record["crc32c"], record["fields"]
        if not isinstance(header, dict) or not isinstance(record, dict):
            raise TypeError
        key = content_key(fields)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DamagedEntry("has a header that cannot be read") from None
    data = memoryview(content)[begin:]
    # Entries of older versions have a checksum of the data alone.
    if written not in (checksum(header, fields, data), f"{crc32c(data):08x}"):
        raise DamagedEntry("has another checksum than when it was written")
    if key != Path(path).stem:  # moved or copied by hand: another clip's, caption's or window's
        raise DamagedEntry(f"is the entry of {_named(fields)}")
    return header, record, content


def _named(fields: Any) -> str:
    """What an entry was made of, on one line."""
    return repr({name: fields[name] for name in ("path", "text") if name in fields})[:200]


def checksum(header: Mapping[str, Any], fields: Any, data: memoryview) -> str:
    """Of an entry's header, what its key was made of, and its data."""
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    described = json.dumps([tensors, fields], sort_keys=True).encode()
    return f"{crc32c(described):08x}{crc32c(data):08x}"


def header_of(content: bytes) -> dict[str, Any]:
    """Unchecked."""
    header: dict[str, Any] = json.loads(content[8 : _data_begins(content)])
    return header


def _data_begins(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")
