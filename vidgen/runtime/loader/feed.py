"""Worker threads that fill one slot a step, and the slots' way to the device."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from vidgen.runtime.memory import HOST, Arena, Lane, Lease, Ticket

Plan = TypeVar("Plan")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Job(Generic[Plan]):
    """One step: its samples fill slot[0], slot[1], ... of a uint8 array of `shape`."""

    plan: Plan
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape))


@dataclass(eq=False)
class _Running(Generic[Plan, Result]):
    job: Job[Plan]
    lease: Lease
    left: int  # samples still to be filled
    results: list[Any]
    ticket: Ticket | None = None
    error: BaseException | None = None
    finished: threading.Event = field(default_factory=threading.Event)


class Feed(Generic[Plan, Result]):
    """Hands out jobs in order, each complete and on the device, while the next ones are made.

    Neither the number of workers nor `ahead` changes what is handed out. `fill(plan, i, out)`
    writes sample i and is called from several threads at once.
    """

    def __init__(
        self,
        jobs: Iterator[Job[Plan]],
        fill: Callable[[Plan, int, np.ndarray], Result],
        *,
        arena: Arena,
        lane: Lane,
        workers: int,
        ahead: int,
        name: str = "loader",
    ) -> None:
        """The arena must have room for the largest job; with less than `ahead` + 1 of them the
        feed runs, with less ahead. Without workers `next` fills the slot itself."""
        self._jobs, self._fill = jobs, fill
        self._arena, self._lane = arena, lane
        self._ahead = ahead if workers else 1
        self._running: deque[_Running[Plan, Result]] = deque()
        self._waiting: Job[Plan] | None = None  # taken from `jobs`, but had no room
        self._tasks: queue.SimpleQueue[tuple[_Running[Plan, Result], int] | None] = (
            queue.SimpleQueue()
        )
        self._lock = threading.Lock()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"vidgen-{name}-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def next(self) -> tuple[Plan, Tensor, list[Result]]:
        """The next job's plan, its slot's contents on the device, and what `fill` returned."""
        if self._closing:
            raise RuntimeError("the feed is closed")
        self._top_up()
        current = self._running[0]
        if not self._threads and not current.finished.is_set():
            for sample in range(len(current.results)):
                self._do(current, sample)
        current.finished.wait()
        if current.error is not None:
            raise current.error
        assert current.ticket is not None
        on_cuda = self._lane.device.type == "cuda"
        consumer = torch.cuda.current_stream(self._lane.device) if on_cuda else HOST
        video = current.ticket.read(consumer)
        self._running.popleft()
        if self._threads:
            self._top_up()
        return current.job.plan, video, current.results

    def close(self) -> None:
        """Stop the workers after the sample each is at, and give every slot back."""
        if self._closing:
            return
        self._closing = True
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        for running in self._running:
            if running.ticket is not None:
                running.ticket.wait()
            elif running.error is None or running.left:
                running.lease.give_back()
        self._running.clear()

    def _top_up(self) -> None:
        """Start jobs until enough are under way or there is no room for more."""
        while len(self._running) < self._ahead:
            if self._waiting is None:
                self._waiting = next(self._jobs)
            job = self._waiting
            what = f"slot {job.shape}"
            # With nothing under way the wait is for copies that end by themselves.
            lease = (
                self._arena.try_lease(job.nbytes, what=what)
                if self._running
                else self._arena.lease(job.nbytes, what=what)
            )
            if lease is None:
                return
            self._waiting = None
            running: _Running[Plan, Result] = _Running(
                job, lease, job.shape[0], [None] * job.shape[0]
            )
            self._running.append(running)
            if self._threads:
                for sample in range(job.shape[0]):
                    self._tasks.put((running, sample))

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            if task is None or self._closing:
                return
            self._do(*task)

    def _do(self, running: _Running[Plan, Result], sample: int) -> None:
        if running.error is None:
            try:
                slot = running.lease.tensor(running.job.shape).numpy()
                running.results[sample] = self._fill(running.job.plan, sample, slot[sample])
            except BaseException as error:
                # Raised again where the job is asked for.
                running.error = error
        with self._lock:
            running.left -= 1
            if running.left:
                return
        try:
            self._send(running)
        except BaseException as error:
            running.error = error
        running.finished.set()

    def _send(self, running: _Running[Plan, Result]) -> None:
        """The last sample is in: off to the device, and the slot returns when it is there."""
        if running.error is not None:
            running.lease.give_back()
            return
        slot = running.lease.tensor(running.job.shape)
        running.ticket = self._lane.to_device(slot, producer=HOST, lease=running.lease)
        running.lease.give_back(after=running.ticket)
        if self._lane.device.type == "cpu":
            running.ticket.wait()  # the copy costs time of a worker, not of the training thread
