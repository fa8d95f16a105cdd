"""A fixed block of host memory, lent in exact sizes and returned on events."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vidgen.runtime import native
from vidgen.runtime.memory.errors import ArenaTimeout


class Event(Protocol):
    """What a lease's return may wait for; a lane's tickets are such. Once it has said yes it says
    so for ever."""

    def done(self) -> bool: ...


@dataclass(frozen=True)
class ArenaStats:
    nbytes: int
    held: int  # bytes on loan, or waiting for an event or a view to go
    high_water: int
    leases: int  # given out since the start
    waits: int  # leases that had to wait for room
    waited_s: float  # how long they did, all together
    largest_free: int  # bytes in one piece
    lendable: int  # what `largest_free` will be when all but the views kept is returned
    registrations: int  # page-lockings: 1 or 0, whatever the number of leases
    huge_pages: bool  # from the machine's reserved pool; transparent ones are the kernel's choice

    @property
    def fragmentation(self) -> float:
        """Share of the free bytes that lie outside the largest free piece."""
        free = self.nbytes - self.held
        return 1 - self.largest_free / free if free else 0.0


class Arena:
    """`pinned` None: page-locked where there is a CUDA device, and then near it. `shared`: other
    processes can map it (see `share`); it is no file, and gone with the last process that has it.

    A forked child cannot use its parent's arena: it does not even have the memory, unless that is
    shared.
    """

    def __init__(
        self,
        nbytes: int,
        *,
        pinned: bool | None = None,
        shared: bool = False,
        device: int | None = None,
        name: str = "arena",
    ) -> None:
        """`device`: the CUDA device it is for; by default the current one."""
        if nbytes <= 0:
            raise ValueError(f"an arena of {nbytes} bytes")
        self.name = name
        self.pinned = torch.cuda.is_available() if pinned is None else pinned
        memory = native.require().memory
        index, node = 0, -1
        if self.pinned:
            index = torch.cuda.current_device() if device is None else device
            node = memory.numa_node_of_device(index)
        self._native = memory.Arena(
            nbytes, name=name, pinned=self.pinned, shared=shared, device=index, numa_node=node
        )
        self.nbytes: int = self._native.nbytes
        self.shared = shared

    def lease(
        self, nbytes: int, *, timeout: float | None = 60.0, what: str = "", align: int = 256
    ) -> "Lease":
        """Wait up to `timeout` seconds (None: for ever) for `nbytes` in one piece, at an address
        that is a multiple of `align` (up to 4096, which O_DIRECT asks for). Nobody overtakes those
        who wait already."""
        return self._lease(nbytes, -1.0 if timeout is None else max(timeout, 0.0), what, align)

    def try_lease(self, nbytes: int, *, what: str = "", align: int = 256) -> "Lease | None":
        """A lease if there is room now, and nobody waits for some."""
        try:
            return self._lease(nbytes, 0.0, what, align)
        except ArenaTimeout:
            return None

    def _lease(self, nbytes: int, timeout: float, what: str, align: int) -> "Lease":
        if nbytes <= 0:
            raise ValueError(f"{self.name}: a lease of {nbytes} bytes out of {self.nbytes}")
        return Lease(self._native.take(nbytes, align, timeout, what, _caller()))

    def share(self) -> tuple[int, int]:
        """The memory file's descriptor, for a child process to inherit, and the bytes to map."""
        if not self.shared:
            raise ValueError(f"{self.name} is private to this process; make it with shared=True")
        return self._native.file, self._native.mapped_bytes

    def tell(self, file: int | None) -> None:
        """An eventfd to add to whenever room is made by a view's going; None: no longer."""
        self._native.tell(-1 if file is None else file)

    def stats(self) -> ArenaStats:
        found = self._native.stats()
        return ArenaStats(**{field: getattr(found, field) for field in ArenaStats.__annotations__})

    def holders(self) -> list[str]:
        """One line for each piece that is not free: its size, who took it, where, how long ago."""
        found: list[str] = self._native.holders()
        return found

    def close(self) -> None:
        """Give the memory back; raises LeaseError while any of it is on loan or was leaked. A view
        that is still kept keeps its bytes."""
        self._native.close()


class Lease:
    """A piece of an arena; usable until it is given back.

    Views (`tensor`, `numpy`, `view`) are made without a copy. A view kept after the return sees the
    same bytes still: the arena lends them again only when it is gone.
    """

    def __init__(self, lease: Any) -> None:
        self._native = lease
        self.nbytes: int = lease.nbytes
        self.offset: int = lease.offset  # bytes from the start of the arena

    @property
    def pointer(self) -> int:
        """The address, for callers that see to the lifetime themselves."""
        address: int = self._native.pointer()
        return address

    def view(self) -> Any:
        """The bytes as a Python buffer."""
        return self._native.view()

    def tensor(self, shape: Sequence[int], dtype: torch.dtype = torch.uint8) -> Tensor:
        wanted = self._check(shape, dtype, dtype.itemsize)
        view = self._native.view()
        if not wanted:
            return torch.empty(*shape, dtype=dtype)
        return torch.frombuffer(view, dtype=dtype, count=wanted).view(*shape)

    def numpy(self, shape: Sequence[int], dtype: Any = np.uint8) -> np.ndarray:
        wanted = self._check(shape, dtype, np.dtype(dtype).itemsize)
        return np.frombuffer(self._native.view(), dtype, wanted).reshape(shape)

    def __dlpack__(self, **options: Any) -> Any:
        return self.numpy((self.nbytes,)).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # kDLCPU

    def drop_pages(self) -> None:
        """Give its memory back to the machine until it is written again, zeros till then; the
        contents are lost. What is page-locked, and huge pages, stay."""
        self._native.drop_pages()

    def used_by(self, event: Event) -> None:
        """Note a copy from or to this piece; a lane does so for every copy it is given."""
        self._native.used_by(native_event(event))

    def give_back(self, after: Event | None = None) -> None:
        """Return it once `after` and all copies that use it have come; without `after` the
        copies must have, or it is an error."""
        self._native.give_back(native_event(after))

    def _check(self, shape: Sequence[int], dtype: Any, itemsize: int) -> int:
        elements = math.prod(shape)
        if elements * itemsize > self.nbytes:
            raise ValueError(
                f"{tuple(shape)} {dtype} takes {elements * itemsize} bytes of {self.nbytes}"
            )
        return elements


def native_event(event: Event | None) -> Any:
    """A ticket as the native code has it, which asks it without the interpreter; or `event`."""
    return getattr(event, "native", event)


def _caller() -> str:
    """file:line of the first frame outside this file."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
