"""Where this process is: its step, its operation, and how many operations came before.

Every rank of a run records the same operations in the same order, so the rank with the lowest
count is the one the others wait for. Hang detection (vidgen/train/supervise) reads it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    step: int
    operation: str
    count: int
    since: float  # time.monotonic()
    storage: bool = False  # the operation waits for storage, which may be slow


_now = Moment(0, "start", 0, time.monotonic())
_listener: Callable[[Moment], None] | None = None


def note(operation: str, *, step: int | None = None, storage: bool = False) -> None:
    """The operation that begins now; a step holds until another is given."""
    global _now
    before = _now
    _now = Moment(
        before.step if step is None else step,
        operation,
        before.count + 1,
        time.monotonic(),
        storage,
    )
    if _listener is not None:
        _listener(_now)


def listen(listener: Callable[[Moment], None] | None) -> None:
    """Call `listener` for every operation, in the thread that begins it; None: no one."""
    global _listener
    _listener = listener


def now() -> Moment:
    return _now
