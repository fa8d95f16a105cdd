"""The host memory that a save copies into: taken once, and lent again for every save."""

import logging
import os

from torch import Tensor

from vidgen.runtime.checkpoint.layout import PAGE
from vidgen.runtime.memory import Arena, Lease

_log = logging.getLogger(__name__)

_arena: Arena | None = None
_owner = 0  # the process that took it: a forked child takes its own
_lost: list[Lease] = []  # memory that a stuck write may still read


def reserve(nbytes: int) -> None:
    """Take and touch memory for a state of `nbytes` on this rank.

    Saving works without; the first save then waits for the memory as well as for the copy.
    """
    _take(nbytes + nbytes // 100 + 4 * 2**20)  # names, shapes, and files that fill whole pages


def lend(nbytes: int) -> tuple[Lease, Tensor]:
    """Memory for one save, which nobody else has now: the bytes, beginning on a page."""
    _take(nbytes + PAGE)
    assert _arena is not None
    lease = _arena.lease(nbytes + PAGE, what="a checkpoint")
    memory = lease.tensor((nbytes + PAGE,))
    start = -memory.data_ptr() % PAGE
    return lease, memory[start : start + nbytes]


def lose(lease: Lease) -> None:
    """Never lend this memory again, nor give it back: a stuck write may still read it."""
    global _arena
    _lost.append(lease)
    _arena = None


def _take(nbytes: int) -> None:
    global _arena, _owner
    if _owner != os.getpid():
        _arena = None
    if _arena is not None:
        if _arena.nbytes >= nbytes:
            return
        _log.info("checkpoints outgrew their %.0f MiB of host memory", _arena.nbytes / 2**20)
        _arena.close()
        _arena = None
    _arena, _owner = Arena(nbytes, name="checkpoints"), os.getpid()
    lease = _arena.lease(_arena.nbytes)
    lease.tensor((_arena.nbytes,)).zero_()
    lease.give_back()
