"""Which files a rank writes and where each tensor lies in them, known before a byte is copied."""

from collections.abc import Sequence
from dataclasses import dataclass

from vidgen.runtime.checkpoint.layout import (
    CHUNK,
    DTYPES,
    PAGE,
    FileEntry,
    Slice,
    safetensors_header,
    shard_file,
)
from vidgen.runtime.checkpoint.shares import Share


@dataclass(frozen=True)
class PlannedFile:
    name: str
    start: int  # in the image
    header: bytes
    members: tuple[tuple[Share, int], ...]  # and where each begins in the file
    size: int
    checked: tuple[tuple[int, int], ...]  # the header, then each CHUNK of each member

    def entries(self, crcs: Sequence[int]) -> tuple[FileEntry, list[tuple[Share, Slice]]]:
        """What the manifest says of the file, given the checksums of what is checked."""
        slices, at = [], 1
        for share, offset in self.members:
            count = -(-share.size // CHUNK)
            slices.append(
                (share, Slice(self.name, offset, share.box, tuple(crcs[at : at + count])))
            )
            at += count
        return FileEntry(self.size, len(self.header), crcs[0]), slices


@dataclass(frozen=True)
class FilePlan:
    """The image is the files one after another, each beginning on a page."""

    files: tuple[PlannedFile, ...]
    image: int  # bytes

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def plan(shares: Sequence[Share], rank: int, world: int) -> FilePlan:
    groups: dict[str, list[Share]] = {}
    for share in shares:
        groups.setdefault(share.group, []).append(share)
    files, start = [], 0
    for group, members in groups.items():
        # The widest items first, so that each tensor is aligned to its items.
        members.sort(key=lambda s: (-DTYPES[s.dtype].itemsize, s.name))
        header, offsets = safetensors_header([(s.name, s.dtype, s.box.shape) for s in members])
        checked = [(0, len(header))]
        for share, offset in zip(members, offsets, strict=True):
            end = offset + share.size
            checked += [(at, min(CHUNK, end - at)) for at in range(offset, end, CHUNK)]
        size = len(header) + sum(share.size for share in members)
        placed = tuple(zip(members, offsets, strict=True))
        name = shard_file(group, rank, world)
        files.append(PlannedFile(name, start, header, placed, size, tuple(checked)))
        start += -(-size // PAGE) * PAGE
    return FilePlan(tuple(files), start)
