"""A fixed block of host memory, leased in exact sizes and returned on events."""

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
    """What the return of a lease may wait for, such as a lane's ticket. Once `done` returns True it
    always does."""

    def done(self) -> bool: ...


@dataclass(frozen=True)
class ArenaStats:
    nbytes: int
    held: int  # bytes leased, or waiting for an event or for a view to be freed
    high_water: int
    leases: int  # number of leases since the start
    waits: int  # leases that had to wait for room
    waited_s: float  # total time they waited
    largest_free: int  # size in bytes of the largest free piece
    lendable: int  # value of `largest_free` once everything except retained views is returned
    registrations: int  # page-lock calls: 1 or 0, regardless of the number of leases
    huge_pages: bool  # from the machine's reserved pool; the kernel decides about transparent ones

    @property
    def fragmentation(self) -> float:
        """Share of the free bytes that lie outside the largest free piece."""
        free = self.nbytes - self.held
        return 1 - self.largest_free / free if free else 0.0


class Arena:
    """A pool of host memory. `pinned=None` page-locks it, on the device's NUMA node, if there is a
    CUDA device. With `shared=True` other processes can map it (see `share`); it has no file name
    and is freed with the last process that maps it.

    A forked child cannot use its parent's arena; private memory is not mapped in the child.
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
        """`device` is the CUDA device it serves; the current one by default."""
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
        """Lease `nbytes` in one piece, at an address that is a multiple of `align` (up to 4096, as
        O_DIRECT needs). Waits up to `timeout` seconds (None: no limit); requests are served in
        order."""
        return self._lease(nbytes, -1.0 if timeout is None else max(timeout, 0.0), what, align)

    def try_lease(self, nbytes: int, *, what: str = "", align: int = 256) -> "Lease | None":
        """Return a lease if there is room now and no request is waiting, else None."""
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
        """Write to an eventfd whenever freeing a view makes room; None stops it."""
        self._native.tell(-1 if file is None else file)

    def stats(self) -> ArenaStats:
        found = self._native.stats()
        return ArenaStats(**{field: getattr(found, field) for field in ArenaStats.__annotations__})

    def holders(self) -> list[str]:
        """One line for each leased piece: its size, purpose, call site and age."""
        found: list[str] = self._native.holders()
        return found

    def close(self) -> None:
        """Free the memory; raises LeaseError if any lease is outstanding or leaked. A view that is
        still referenced keeps its memory alive."""
        self._native.close()


class Lease:
    """A piece of an arena; usable until it is given back.

    `tensor`, `numpy` and `view` return views without a copy. A view kept after the return still
    sees the same bytes: the arena reuses them only when the view is freed.
    """

    def __init__(self, lease: Any) -> None:
        self._native = lease
        self.nbytes: int = lease.nbytes
        self.offset: int = lease.offset  # offset in bytes from the start of the arena

    @property
    def pointer(self) -> int:
        """The address, for callers that manage its lifetime themselves."""
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
        """Discard the contents and return the pages to the system; they read as zeros until
        written. Page-locked memory and huge pages are not returned."""
        self._native.drop_pages()

    def used_by(self, event: Event) -> None:
        """Record a copy from or to this piece; a lane does so for each of its copies."""
        self._native.used_by(native_event(event))

    def give_back(self, after: Event | None = None) -> None:
        """Return it once `after` and all copies that use it are complete. Without `after`, raises
        LeaseError if a copy is still in flight."""
        self._native.give_back(native_event(after))

    def _check(self, shape: Sequence[int], dtype: Any, itemsize: int) -> int:
        elements = math.prod(shape)
        if elements * itemsize > self.nbytes:
            raise ValueError(
                f"{tuple(shape)} {dtype} takes {elements * itemsize} bytes of {self.nbytes}"
            )
        return elements


def native_event(event: Event | None) -> Any:
    """The native object of a ticket, which C++ polls without the interpreter; else `event`."""
    return getattr(event, "native", event)


def _caller() -> str:
    """file:line of the first frame outside this file."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
