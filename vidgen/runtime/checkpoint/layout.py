"""What a checkpoint is on disk: its manifest, its safetensors headers, and boxes of tensors.

root/step-000000100/manifest.json                      sizes, checksums, who holds what
                    model-00000-of-00002.safetensors   rank 0's part of the group "model"
                    trainer.json                       the object "trainer"
"""

import errno
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.distributed.tensor import DTensor

from vidgen.errors import UserError
from vidgen.runtime import dtypes
from vidgen.runtime.crc32c import crc32c

MANIFEST = "manifest.json"
FORMAT = "vidgen-checkpoint"
VERSION = 1
PAGE = 4096  # tensor data starts on a page, so that O_DIRECT can read and write it
CHUNK = 256 * 1024  # bytes under one checksum: the least that a partial read reads and checks

NAME = re.compile(r"[a-z0-9_]+")

DTYPES, DTYPE_NAMES = dtypes.by_name(), dtypes.names()


class DamagedCheckpoint(UserError):
    """Files that are not as they were written; another step's may be."""


class OtherFormat(ValueError):
    """A manifest that another version of vidgen wrote."""


@dataclass(frozen=True)
class Box:
    """A rectangular part of a tensor: its first index and its extent along each dimension."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def intersect(self, other: "Box") -> "Box | None":
        low = tuple(map(max, self.start, other.start))
        high = tuple(
            min(a + n, b + m)
            for a, n, b, m in zip(self.start, self.shape, other.start, other.shape, strict=True)
        )
        if any(a >= b for a, b in zip(low, high, strict=True)):
            return None
        return Box(low, tuple(b - a for a, b in zip(low, high, strict=True)))

    def slices_within(self, outer: "Box") -> tuple[slice, ...]:
        """The index that picks this box out of a tensor holding `outer`."""
        return tuple(
            slice(a - b, a - b + n)
            for a, b, n in zip(self.start, outer.start, self.shape, strict=True)
        )


def whole(shape: Sequence[int]) -> Box:
    return Box((0,) * len(shape), tuple(shape))


def local_part(tensor: Tensor) -> tuple[Tensor, Box]:
    """What this rank holds of a tensor, sharing its storage, and which box of it that is."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), whole(tensor.shape)
    chunks = tensor.__create_chunk_list__()
    if len(chunks) != 1:
        raise TypeError(f"{tensor.placements} leaves a rank {len(chunks)} separate parts, not one")
    return tensor.to_local().detach(), Box(tuple(chunks[0].offsets), tuple(chunks[0].sizes))


def held_bytes(tensor: Tensor) -> int:
    """The bytes that this rank holds of a tensor."""
    return local_part(tensor)[0].nbytes


@dataclass(frozen=True)
class Slice:
    """One box of a tensor as it lies in a file, with a checksum for each CHUNK of its bytes."""

    file: str
    offset: int  # bytes from the beginning of the file
    box: Box
    crcs: tuple[int, ...]


@dataclass(frozen=True)
class TensorEntry:
    dtype: str
    shape: tuple[int, ...]
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class FileEntry:
    """A file's size, and the checksum of its first `checked` bytes (a shard's header, or all)."""

    size: int
    checked: int
    crc: int


@dataclass(frozen=True)
class Manifest:
    step: int
    world: int
    files: dict[str, FileEntry]
    tensors: dict[str, dict[str, TensorEntry]]  # group, then name
    objects: tuple[str, ...]  # each lies in <object>.json

    def to_json(self) -> bytes:
        body = {
            "format": FORMAT,
            "version": VERSION,
            "step": self.step,
            "world": self.world,
            "chunk": CHUNK,
            "files": {
                name: {"size": f.size, "checked": f.checked, "crc32c": f"{f.crc:08x}"}
                for name, f in self.files.items()
            },
            "tensors": {
                group: {name: _entry_to_json(entry) for name, entry in entries.items()}
                for group, entries in self.tensors.items()
            },
            "objects": list(self.objects),
        }
        return json.dumps({**body, "crc32c": f"{_body_crc(body):08x}"}).encode()

    @staticmethod
    def from_json(text: bytes) -> "Manifest":
        """Raises ValueError, saying why, for anything that `to_json` did not write."""
        body = json.loads(text)
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise ValueError(f"it is not a {FORMAT} manifest")
        stated = body.pop("crc32c", None)
        if stated != f"{_body_crc(body):08x}":
            raise ValueError("its CRC32C does not match its contents")
        if body["version"] != VERSION:
            raise OtherFormat(f"it has version {body['version']}; this vidgen reads {VERSION}")
        if body["chunk"] != CHUNK:
            raise OtherFormat(f"its checksums cover {body['chunk']} bytes each, not {CHUNK}")
        return Manifest(
            step=body["step"],
            world=body["world"],
            files={
                name: FileEntry(f["size"], f["checked"], int(f["crc32c"], 16))
                for name, f in body["files"].items()
            },
            tensors={
                group: {name: _entry_from_json(entry) for name, entry in entries.items()}
                for group, entries in body["tensors"].items()
            },
            objects=tuple(body["objects"]),
        )


def _body_crc(body: dict[str, Any]) -> int:
    return crc32c(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def _entry_to_json(entry: TensorEntry) -> dict[str, Any]:
    slices = [
        {
            "file": s.file,
            "offset": s.offset,
            "start": s.box.start,
            "shape": s.box.shape,
            # eight hexadecimal digits a chunk, end to end: a big model has a million of them
            "crc32c": "".join(f"{crc:08x}" for crc in s.crcs),
        }
        for s in entry.slices
    ]
    return {"dtype": entry.dtype, "shape": entry.shape, "slices": slices}


def _entry_from_json(entry: dict[str, Any]) -> TensorEntry:
    slices = tuple(
        Slice(
            file=s["file"],
            offset=s["offset"],
            box=Box(tuple(s["start"]), tuple(s["shape"])),
            crcs=tuple(np.frombuffer(bytes.fromhex(s["crc32c"]), ">u4").tolist()),
        )
        for s in entry["slices"]
    )
    return TensorEntry(entry["dtype"], tuple(entry["shape"]), slices)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a step's directory; a UserError says what is wrong with another path."""
    try:
        text = (path / MANIFEST).read_bytes()
    except FileNotFoundError:
        kind = DamagedCheckpoint if path.name.startswith("step-") else UserError
        raise kind(
            f"{path} is not a checkpoint: it holds no {MANIFEST}; "
            f"expected a directory like {path}/step-000000100"
        ) from None
    except OSError as error:
        raise unreadable(path / MANIFEST, error, "load another step's directory") from None
    try:
        return Manifest.from_json(text)
    except OtherFormat as error:
        raise UserError(
            f"{path / MANIFEST} cannot be read: {error}; use the vidgen that wrote it"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(
            f"{path / MANIFEST} is damaged: {error}; load another step's directory"
        ) from None


def unreadable(path: Path, error: OSError, advice: str) -> UserError:
    """Damage, unless the file is not this user's to read."""
    refused = error.errno in (errno.EACCES, errno.EPERM)
    kind = UserError if refused else DamagedCheckpoint
    return kind(f"{path} cannot be read: {error.strerror}; {advice}")


def shard_file(group: str, rank: int, world: int) -> str:
    return f"{group}-{rank:05d}-of-{world:05d}.safetensors"


def object_file(name: str) -> str:
    return f"{name}.json"


def safetensors_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
) -> tuple[bytes, list[int]]:
    """The header of a file holding these tensors (name, dtype, shape) one after another, and each
    one's file offset.

    The format: 8 bytes of little-endian length, then JSON, which may end in spaces; offsets in it
    count from the end of the header. Tensors must come with the widest items first, so that each
    is aligned to its item.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begins, position = [], 0
    for name, dtype, shape in tensors:
        width = DTYPES[dtype].itemsize
        assert position % width == 0, f"{name} is not aligned to its items"
        end = position + math.prod(shape) * width
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        begins.append(position)
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    length = -(-(8 + len(text)) // PAGE) * PAGE
    text = text.ljust(length - 8)
    return len(text).to_bytes(8, "little") + text, [length + begin for begin in begins]
