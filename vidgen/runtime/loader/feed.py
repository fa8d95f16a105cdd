"""One slot a step, filled by worker processes, and the slots' way to the device."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from vidgen.runtime.loader.processes import Processes, Request, Task
from vidgen.runtime.memory import HOST, Arena, Lane, Lease, Ticket

Plan = TypeVar("Plan")
Result = TypeVar("Result")

Filling = Generator[Request, Any, Result]
"""Fills one sample: yields requests, is sent the answer of each, or `Lost` where the process that
ran it hung or died, and returns what to hand out with the sample."""


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
    lease: Lease | None  # None: given back
    left: int  # samples still to be filled
    results: list[Any]
    ticket: Ticket | None = None
    error: BaseException | None = None
    finished: threading.Event = field(default_factory=threading.Event)

    def sample(self, index: int) -> np.ndarray:
        assert self.lease is not None
        slot = self.lease.numpy(self.job.shape)
        return slot[index]


@dataclass(eq=False)
class _Sample:
    running: "_Running[Any, Any]"
    index: int
    filling: Filling[Any]


class Feed(Generic[Plan, Result]):
    """Hands out jobs in order, each complete and on the device, while the next ones are made.

    Neither the number of workers nor `ahead` changes what is handed out. `fill(plan, i, out)` makes
    the `Filling` of sample i; it runs in a thread of this process, only its requests in workers.
    """

    def __init__(
        self,
        jobs: Iterator[Job[Plan]],
        fill: Callable[[Plan, int, np.ndarray], Filling[Result]],
        *,
        arena: Arena,
        lane: Lane,
        workers: int,
        ahead: int,
        timeout_s: float = 60.0,
        name: str = "loader",
    ) -> None:
        """The arena, shared where there are workers, must have room for the largest job; with less
        than `ahead` + 1 of them the feed runs, with less ahead. Without workers `next` runs the
        requests itself, and `timeout_s`, how long one may take, has no effect."""
        self._jobs, self._fill = jobs, fill
        self._arena, self._lane = arena, lane
        self._ahead = ahead if workers else 1
        self._running: deque[_Running[Plan, Result]] = deque()
        self._waiting: Job[Plan] | None = None  # taken from `jobs`, but had no room
        self._closed = False
        self._supervisor = _Supervisor(self, workers, timeout_s, name) if workers else None

    def next(self) -> tuple[Plan, Tensor, list[Result]]:
        """The next job's plan, its slot's contents on the device, and what `fill` returned."""
        if self._closed:
            raise RuntimeError("the feed is closed")
        self._top_up()
        current = self._running[0]
        if self._supervisor is None and not current.finished.is_set():
            self._fill_here(current)
        current.finished.wait()
        if self._closed:
            raise RuntimeError("the feed was closed")
        if current.error is not None:
            raise current.error
        assert current.ticket is not None
        on_cuda = self._lane.device.type == "cuda"
        consumer = torch.cuda.current_stream(self._lane.device) if on_cuda else HOST
        contents = current.ticket.read(consumer)
        self._running.popleft()
        if self._supervisor is not None:
            self._top_up()
        return current.job.plan, contents, current.results

    def stop(self) -> None:
        """Stop the workers, whatever they are at. A thread that waits in `next` is told."""
        if self._closed:
            return
        self._closed = True
        if self._supervisor is not None:
            self._supervisor.stop()
        for running in list(self._running):
            running.finished.set()

    def close(self) -> None:
        """Stop, and give every slot back. No thread may be in `next`."""
        self.stop()
        for running in self._running:
            if running.ticket is not None:
                running.ticket.wait()
            if running.lease is not None:
                running.lease.give_back()
        self._running.clear()

    def _top_up(self) -> None:
        """Start jobs until enough are under way or there is no room for more."""
        while len(self._running) < self._ahead:
            self._waiting = self._waiting or next(self._jobs, None)
            if (job := self._waiting) is None:
                return
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
            if self._supervisor is not None:
                self._supervisor.add(running)

    def _fill_here(self, running: _Running[Plan, Result]) -> None:
        for index in range(len(running.results)):
            sample = self._begin(running, index)
            request = self._advance(sample, None)
            while request is not None:
                request = self._advance(sample, request(running.sample(index)))

    def _begin(self, running: _Running[Plan, Result], index: int) -> _Sample:
        return _Sample(running, index, self._fill(running.job.plan, index, running.sample(index)))

    def _advance(self, sample: _Sample, answer: Any) -> Request | None:
        """The sample's next request; None where it has no more."""
        running = sample.running
        if running.error is None:
            try:
                if isinstance(answer, BaseException):
                    raise answer
                return sample.filling.send(answer)
            except StopIteration as stop:
                running.results[sample.index] = stop.value
            except BaseException as error:
                running.error = error  # raised again where the job is asked for
        sample.filling.close()
        running.left -= 1
        if not running.left:
            self._send(running)
        return None

    def _send(self, running: _Running[Plan, Result]) -> None:
        """The last sample is in: off to the device, and the slot returns when it is there."""
        assert running.lease is not None
        try:
            if running.error is not None:
                running.lease.give_back()
            else:
                slot = running.lease.tensor(running.job.shape)
                running.ticket = self._lane.to_device(slot, producer=HOST, lease=running.lease)
                running.lease.give_back(after=running.ticket)
            running.lease = None
            if running.ticket is not None and self._lane.device.type == "cpu":
                running.ticket.wait()  # the copy costs time of this thread, not of the training
        except BaseException as error:
            running.error = error
        running.finished.set()


class _Supervisor:
    """The thread between a feed and its worker processes."""

    def __init__(self, feed: Feed[Any, Any], workers: int, timeout_s: float, name: str) -> None:
        # Not the feed itself: a feed that nobody holds any more must be able to go.
        self._begin, self._advance = feed._begin, feed._advance
        handle = feed._arena.share()
        self._file, self._nbytes = handle.file, handle.nbytes
        self._workers, self._timeout_s, self._name = workers, timeout_s, name
        self._added: deque[_Running[Any, Any]] = deque()
        self._failure: BaseException | None = None
        self._stopping = False
        self._bell, self._ring = Pipe(duplex=False)
        self._thread = threading.Thread(target=self._run, name=f"vidgen-{name}", daemon=True)
        self._thread.start()

    def add(self, running: "_Running[Any, Any]") -> None:
        self._added.append(running)
        self._ring.send(None)

    def stop(self) -> None:
        self._stopping = True
        self._ring.send(None)
        self._thread.join()
        self._bell.close()
        self._ring.close()

    def _run(self) -> None:
        """Everything a worker process is for, from its start to its end, happens here: it ends with
        the thread that started it."""
        queue: deque[tuple[_Sample, Request]] = deque()
        under_way: dict[Task, _Sample] = {}
        unfinished: list[_Running[Any, Any]] = []
        processes: Processes | None = None
        try:
            processes = Processes(
                self._workers,
                file=self._file,
                nbytes=self._nbytes,
                timeout_s=self._timeout_s,
                name=self._name,
            )
            while not self._stopping:
                while processes.idle() and queue:
                    sample, request = queue.popleft()
                    processes.submit(task := self._task(sample, request))
                    under_way[task] = sample
                answers = processes.collect(self._bell)
                while self._bell.poll():
                    self._bell.recv()
                unfinished = [running for running in unfinished if not running.finished.is_set()]
                for task, answer in answers:
                    sample = under_way.pop(task)
                    follow_up = self._advance(sample, answer)
                    if follow_up is not None:
                        queue.appendleft((sample, follow_up))
                while self._added and not self._stopping:
                    running = self._added.popleft()
                    unfinished.append(running)
                    self._enqueue(running, queue)
        except BaseException as error:
            self._failure = error
        finally:
            if processes is not None:
                processes.close()
        self._fail(unfinished)

    def _enqueue(
        self, running: "_Running[Any, Any]", queue: "deque[tuple[_Sample, Request]]"
    ) -> None:
        for index in range(len(running.results)):
            sample = self._begin(running, index)
            request = self._advance(sample, None)
            if request is not None:
                queue.append((sample, request))

    def _task(self, sample: _Sample, request: Request) -> Task:
        running = sample.running
        assert running.lease is not None
        each = running.job.nbytes // running.job.shape[0]
        return Task(request, running.lease.offset + sample.index * each, running.job.shape[1:])

    def _fail(self, unfinished: "list[_Running[Any, Any]]") -> None:
        """After the end of the thread's work: nobody may wait for ever."""
        while not self._stopping:
            while self._added:
                unfinished.append(self._added.popleft())
            for running in unfinished:
                running.error = running.error or self._failure
                running.finished.set()
            unfinished = []
            self._bell.poll(None)
            self._bell.recv()
