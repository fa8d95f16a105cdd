"""A copy engine for machines without one: it copies late, in an order a seed decides."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False)
class PendingCopy:
    run: Callable[[], None]
    after: "PendingCopy | None"
    not_before: float  # time.monotonic()
    finished: threading.Event = field(default_factory=threading.Event)


class SimulatedEngine:
    """Serves any number of queues. Each is first in first out, as a CUDA stream is; which queue
    moves next is drawn from the seed, and nothing moves before somebody waits or asks: whoever
    reads a destination or reuses a source without its ticket gets wrong bytes."""

    def __init__(self, seed: int = 0, latency_s: float = 0.0) -> None:
        """`latency_s`: the mean of the seconds a copy takes at least, each drawn from the seed."""
        self._random = random.Random(seed)
        self._latency_s = latency_s
        self._queues: list[deque[PendingCopy]] = []
        self._lock = threading.RLock()

    def new_queue(self) -> deque[PendingCopy]:
        with self._lock:
            self._queues.append(deque())
            return self._queues[-1]

    def submit(
        self, queue: deque[PendingCopy], run: Callable[[], None], after: PendingCopy | None
    ) -> PendingCopy:
        with self._lock:
            latency = self._random.uniform(0, 2 * self._latency_s)
            copy = PendingCopy(run, after, time.monotonic() + latency)
            queue.append(copy)
            return copy

    def poll(self, copy: PendingCopy) -> bool:
        """Let some queue move, or none; says whether `copy` is finished."""
        with self._lock:
            if not copy.finished.is_set() and self._random.random() < 0.5:
                self._advance()
            return copy.finished.is_set()

    def wait(self, copy: PendingCopy) -> None:
        while not copy.finished.is_set():
            with self._lock:
                moved = self._advance()
            if not moved:
                copy.finished.wait(0.0005)

    def _advance(self) -> bool:
        """Carry out the head of one queue that may move; says whether there was one."""
        now = time.monotonic()
        ready = [
            queue
            for queue in self._queues
            if queue
            and queue[0].not_before <= now
            and (queue[0].after is None or queue[0].after.finished.is_set())
        ]
        if not ready:
            return False
        copy = self._random.choice(ready).popleft()
        copy.run()
        copy.finished.set()
        return True
