"""What is to be written and read, and what came of it: the plan that every byte pusher follows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

# Asked before each system call that can touch the disk, with its name, path, offset and bytes. It
# answers how many bytes to go on with (all: the number it was given) or a negated errno to have in
# place of the call. Tests put their faults here.
Hook = Callable[[str, str, int, int], int]

ENDED = -1  # the code of a Problem where a file is too short


@dataclass(frozen=True)
class OutputFile:
    path: Path
    data: Tensor  # uint8: begins on a page and goes on to the end of the file's last page
    size: int
    checked: Sequence[tuple[int, int]]  # parts under a checksum: first byte and bytes, in order


@dataclass(frozen=True)
class ReadSpan:
    """Bytes of a file read and checked together, and the part of them that is wanted."""

    label: str  # the tensor, for messages
    file: str
    offset: int
    size: int
    crcs: tuple[int, ...]  # of each CHUNK
    begin: int = 0  # of the wanted bytes, within the span
    out: Tensor | None = None  # contiguous, on the CPU; None: nothing is wanted but the check


@dataclass(frozen=True)
class Problem:
    span: ReadSpan
    code: int  # 0: a checksum differs; ENDED; else an errno
    offset: int  # in the file
    expected: int
    found: int


@dataclass(frozen=True)
class Statistics:
    bytes: int  # moved between memory and files
    direct: int  # of these, by O_DIRECT
    continued: int  # transfers that came back short and were gone on with
    retried: int  # EINTR and EAGAIN
