"""An arena's memory seen from another process."""

import mmap
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ArenaHandle:
    """Names a memory file of a running process. It has no name in any file system, so nothing is
    left behind however the processes end."""

    process: int
    file: int
    nbytes: int
    identity: tuple[int, int]  # device and inode: the number may have been given to another file


def handle_of(file: int, nbytes: int) -> ArenaHandle:
    status = os.fstat(file)
    return ArenaHandle(os.getpid(), file, nbytes, (status.st_dev, status.st_ino))


class SharedArena:
    """The whole memory of another process's arena; which bytes to use, that process says."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @classmethod
    def open(cls, handle: ArenaHandle) -> "SharedArena":
        """In the process that made it too. It stays mapped after that process has ended."""
        path = f"/proc/{handle.process}/fd/{handle.file}"
        try:
            file = os.open(path, os.O_RDWR)
        except OSError as error:
            raise RuntimeError(
                f"the arena of process {handle.process} cannot be opened ({error.strerror}): it "
                "has ended, closed the arena, or is another user's"
            ) from None
        try:
            status = os.fstat(file)
            if (status.st_dev, status.st_ino) != handle.identity:
                raise RuntimeError(f"the arena of process {handle.process} was closed")
            return cls(mmap.mmap(file, handle.nbytes))
        finally:
            os.close(file)

    def numpy(self, offset: int, shape: tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray:
        """A view of the bytes at `offset`, which is a lease's; no copy."""
        count = int(np.prod(shape))
        return np.frombuffer(self._memory, dtype, count, offset).reshape(shape)

    def close(self) -> None:
        """Views must be gone (BufferError); the end of the process does it too."""
        self._memory.close()

    def __enter__(self) -> "SharedArena":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
