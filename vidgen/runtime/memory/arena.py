"""A fixed block of host memory, lent in exact sizes and returned on events."""

import math
import mmap
import os
import threading
import time
import traceback
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_ALIGN = 256  # bytes: what vector units and copy engines like best; the only rounding there is


class LeaseError(RuntimeError):
    """A lease was used against its rules: returned early or twice, leaked, or used afterwards."""


class ArenaTimeout(TimeoutError):
    """No room came free in time; the message names who holds what."""


class Event(Protocol):
    """What a lease's return may wait for; a lane's tickets are such."""

    def done(self) -> bool: ...


@dataclass(frozen=True)
class ArenaStats:
    nbytes: int
    held: int  # bytes on loan or waiting for an event
    high_water: int
    leases: int  # given out since the start
    waits: int  # leases that had to wait for room
    largest_free: int  # bytes in one piece: held + largest_free < nbytes is fragmentation
    registrations: int  # page-lockings: 1 or 0, whatever the number of leases


@dataclass(frozen=True)
class ArenaHandle:
    """What another process needs to see the memory; it has no name in any file system."""

    file: int
    nbytes: int


class Arena:
    """`pinned` None: page-locked where there is a CUDA device."""

    def __init__(
        self,
        nbytes: int,
        *,
        pinned: bool | None = None,
        shared: bool = False,
        name: str = "arena",
    ) -> None:
        if nbytes <= 0:
            raise ValueError(f"an arena of {nbytes} bytes")
        self.name = name
        self.nbytes = _round_up(nbytes)
        # Registering plain memory keeps the size exact; torch's own pinned allocator rounds it to
        # a power of two.
        self._memory: Tensor | None
        self._file: int | None = None
        if shared:
            self._file = os.memfd_create(name)
            os.ftruncate(self._file, self.nbytes)
            self._memory = torch.frombuffer(mmap.mmap(self._file, self.nbytes), dtype=torch.uint8)
        else:
            self._memory = torch.empty(self.nbytes + _ALIGN, dtype=torch.uint8)
        self._base = -self._memory.data_ptr() % _ALIGN
        self.pinned = torch.cuda.is_available() if pinned is None else pinned
        if self.pinned:
            _register(self._memory)
        self._free = {0: self.nbytes}  # offset to size; neighbours are always merged
        # Held pieces by number. Only weak references: a lease nobody holds is a leak to be told.
        self._held: dict[int, _Loan] = {}
        self._returning: dict[int, _Loan] = {}
        self._leaks: list[str] = []
        # Re-entrant: the collector may finalize a leaked lease while this thread holds it.
        self._changed = threading.Condition(threading.RLock())
        self._count = self._waits = self._high_water = 0

    def lease(self, nbytes: int, *, timeout: float | None = 60.0, what: str = "") -> "Lease":
        """Wait up to `timeout` seconds (None: for ever) for `nbytes` in one piece."""
        return self._lease(nbytes, timeout, what)

    def try_lease(self, nbytes: int, *, what: str = "") -> "Lease | None":
        """A lease if there is room now."""
        try:
            return self._lease(nbytes, 0, what)
        except ArenaTimeout:
            return None

    def _lease(self, nbytes: int, timeout: float | None, what: str) -> "Lease":
        size = _round_up(nbytes)
        if nbytes <= 0 or size > self.nbytes:
            raise ValueError(f"{self.name}: a lease of {nbytes} bytes out of {self.nbytes}")
        deadline = None if timeout is None else time.monotonic() + timeout
        waited = False
        with self._changed:
            while True:
                self._check_open()
                self._collect()
                offset = self._best_fit(size)
                if offset is not None:
                    break
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise ArenaTimeout(self._full(nbytes))
                waited = True
                # Events give no notice: while some are awaited, look again soon.
                pause = 0.001 if self._returning else 0.1
                self._changed.wait(pause if left is None else min(pause, left))
            rest = self._free.pop(offset) - size
            if rest:
                self._free[offset + size] = rest
            self._count += 1
            self._waits += waited
            loan = _Loan(self._count, offset, size, what, _caller())
            self._held[loan.number] = loan
            self._high_water = max(self._high_water, self._bytes_held())
            return Lease(self, loan, nbytes)

    def share(self) -> ArenaHandle:
        if self._file is None:
            raise ValueError(f"{self.name} is this process's own; make it with shared=True")
        return ArenaHandle(self._file, self.nbytes)

    def stats(self) -> ArenaStats:
        with self._changed:
            self._collect()
            return ArenaStats(
                nbytes=self.nbytes,
                held=self._bytes_held(),
                high_water=self._high_water,
                leases=self._count,
                waits=self._waits,
                largest_free=max(self._free.values(), default=0),
                registrations=int(self.pinned),
            )

    def close(self) -> None:
        """Give the memory back; raises LeaseError while any of it is on loan or was leaked."""
        with self._changed:
            if self._memory is None:
                return
            self._collect()
            out = [str(loan) for loan in (*self._held.values(), *self._returning.values())]
            if out:
                raise LeaseError(f"{self.name} closed while on loan: {'; '.join(out)}")
            self._check_open()
            if self.pinned:
                _unregister(self._memory)
            self._memory = None
            if self._file is not None:
                os.close(self._file)

    def _full(self, nbytes: int) -> str:
        holders = [str(loan) for loan in (*self._held.values(), *self._returning.values())]
        return (
            f"{self.name}: no {nbytes} bytes free in one piece of {self.nbytes} "
            f"(largest free {max(self._free.values(), default=0)}); held by: "
            f"{'; '.join(holders) or 'nobody'}"
        )

    def _check_open(self) -> None:
        if self._memory is None:
            raise LeaseError(f"{self.name} is closed")
        if self._leaks:
            leaks, self._leaks = self._leaks, []
            raise LeaseError(f"{self.name}: dropped without being returned: {'; '.join(leaks)}")

    def _collect(self) -> None:
        """Free what was waiting for events that have come."""
        for number, loan in list(self._returning.items()):
            if all(event.done() for event in loan.events):
                del self._returning[number]
                self._release(loan.offset, loan.size)

    def _release(self, offset: int, size: int) -> None:
        after = self._free.pop(offset + size, 0)
        before = next((o for o, s in self._free.items() if o + s == offset), None)
        if before is None:
            self._free[offset] = size + after
        else:
            self._free[before] += size + after
        self._changed.notify_all()

    def _best_fit(self, size: int) -> int | None:
        fits = [(free, offset) for offset, free in self._free.items() if free >= size]
        return min(fits)[1] if fits else None

    def _bytes_held(self) -> int:
        return self.nbytes - sum(self._free.values())

    def _give_back(self, loan: "_Loan", events: Sequence[Event]) -> None:
        with self._changed:
            if self._held.pop(loan.number, None) is None:
                raise LeaseError(f"{self.name}: returned twice: {loan}")
            loan.events = [*loan.events, *events]
            self._returning[loan.number] = loan
            self._collect()
            self._changed.notify_all()

    def _leaked(self, number: int) -> None:
        with self._changed:
            loan = self._held.pop(number, None)
            if loan is not None:
                self._leaks.append(str(loan))
                self._returning[number] = loan


class Lease:
    """A piece of an arena; usable until it is given back."""

    def __init__(self, arena: Arena, loan: "_Loan", nbytes: int) -> None:
        self.nbytes = nbytes
        self.offset = loan.offset  # bytes from the start of the arena
        self._arena, self._loan = arena, loan
        self._finalizer = weakref.finalize(self, arena._leaked, loan.number)
        self._finalizer.atexit = False  # the arena goes at exit anyway

    def tensor(self, shape: Sequence[int], dtype: torch.dtype = torch.uint8) -> Tensor:
        """A view, without a copy; `.numpy()` of it is one too. Not to be used after give_back."""
        wanted = math.prod(shape) * dtype.itemsize
        if wanted > self.nbytes:
            raise ValueError(f"{tuple(shape)} {dtype} takes {wanted} bytes of {self.nbytes}")
        if not self._finalizer.alive:
            raise LeaseError(f"{self._arena.name}: used after its return: {self._loan}")
        assert self._arena._memory is not None
        start = self._arena._base + self._loan.offset
        return self._arena._memory[start : start + wanted].view(dtype).view(*shape)

    def used_by(self, event: Event) -> None:
        """Note a copy from or to this piece; a lane does so for every copy it is given."""
        if not self._finalizer.alive:
            raise LeaseError(f"{self._arena.name}: used after its return: {self._loan}")
        self._loan.events.append(event)

    def give_back(self, after: Event | None = None) -> None:
        """Return it once `after` and all copies that use it have come; without `after` the
        copies must have, or it is an error."""
        if after is None and not all(event.done() for event in self._loan.events):
            raise LeaseError(
                f"{self._arena.name}: returned early, a copy still uses it: {self._loan}; "
                "pass the copy's ticket as `after`"
            )
        self._arena._give_back(self._loan, [] if after is None else [after])
        self._finalizer.detach()


class _Loan:
    """The arena's record of a lease; outlives it, so that a leak can be told."""

    def __init__(self, number: int, offset: int, size: int, what: str, place: str) -> None:
        self.number, self.offset, self.size = number, offset, size
        self.what, self.place = what, place
        self.events: list[Event] = []

    def __str__(self) -> str:
        return f"{self.size} bytes{f' ({self.what})' if self.what else ''} taken at {self.place}"


def _round_up(nbytes: int) -> int:
    return -(-nbytes // _ALIGN) * _ALIGN


def _caller() -> str:
    """file:line of the first frame outside this file."""
    for frame, line in traceback.walk_stack(None):
        if frame.f_code.co_filename != __file__:
            return f"{frame.f_code.co_filename}:{line}"
    return "unknown"


def _register(memory: Tensor) -> None:
    status = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
    if status:
        raise MemoryError(f"cannot page-lock {memory.nbytes} bytes: CUDA error {status}")


def _unregister(memory: Tensor) -> None:
    status = int(torch.cuda.cudart().cudaHostUnregister(memory.data_ptr()))
    if status:
        raise RuntimeError(f"cannot unlock {memory.nbytes} bytes: CUDA error {status}")
