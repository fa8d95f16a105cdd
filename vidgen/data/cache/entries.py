"""Entries of the latent cache as files, for a worker process to read: no torch here."""

import contextlib
import json
import math
import os
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

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
        except FileNotFoundError:
            return ABSENT
        except (DamagedEntry, OSError) as error:
            return str(error)
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
    were written."""
    with open(path, "rb") as file:
        content = file.read()
    begin = _data_begins(content)
    if begin > min(_HEADER_MOST, len(content)):
        raise DamagedEntry("has no header")
    try:
        header: dict[str, Any] = json.loads(content[8:begin])
        record: dict[str, Any] = json.loads(header["__metadata__"]["entry"])
        written = record["crc32c"]
    except (ValueError, KeyError, TypeError):
        raise DamagedEntry("has a header that cannot be read") from None
    if f"{crc32c(memoryview(content)[begin:]):08x}" != written:
        raise DamagedEntry("has another checksum than when it was written")
    return header, record, content


def _data_begins(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")
