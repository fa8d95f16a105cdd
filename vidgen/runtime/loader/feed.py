"""One slot a step, filled by worker processes, and the slots' way to the device."""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from vidgen.runtime.loader.processes import Processes, Request, Task
from vidgen.runtime.memory import HOST, Arena, Lane, Lease, Ticket

Plan = TypeVar("Plan")
Result = TypeVar("Result")

_LOOK_AGAIN_S = 0.002  # for room that a copy to the device takes up: its end gives no notice
_CLOSED_S = 0.5  # for an end that the waiting thread is not told of

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
        lane: Lane | None,
        largest: int,
        workers: int,
        ahead: int,
        timeout_s: float = 60.0,
        name: str = "loader",
    ) -> None:
        """The arena, shared where there are workers, must have room for a job of `largest` bytes;
        with less than `ahead` + 1 of them the feed runs, with less ahead.

        `lane` brings slots to its device. Without one the slot itself is handed out and lent again
        when nobody refers to it any more; or a copy, where so many are kept that the largest job
        would find no room. Without workers `next` runs the requests itself, and `timeout_s`, how
        long one may take, has no effect."""
        self._jobs, self._fill = jobs, fill
        self._arena, self._lane, self._largest = arena, lane, largest
        self._ahead = ahead if workers else 1
        self._waiting: Job[Plan] | None = None  # taken from `jobs`, but had no room
        self._begun = self._taken = 0  # jobs, each counted by one thread
        self._in_order: SimpleQueue[_Running[Plan, Result] | BaseException] = SimpleQueue()
        self._current: _Running[Plan, Result] | BaseException | None = None
        self._ended = False  # there are no more jobs
        self._closed = False
        self._supervisor = _Supervisor(self, workers, timeout_s, name) if workers else None

    def next(self) -> tuple[Plan, Tensor, list[Result]]:
        """The next job's plan, its slot's contents on the device, and what `fill` returned."""
        if self._closed:
            raise RuntimeError("the feed is closed")
        if self._current is None and self._supervisor is None:
            deque(self._begin_jobs(), maxlen=0)
        if self._current is None:
            self._current = self._in_order.get()
        current = self._current
        if isinstance(current, BaseException):
            raise current
        if self._supervisor is None and not current.finished.is_set():
            for sample, request in self._begin_samples(current):
                following: Request | None = request
                while following is not None:
                    following = self._advance(sample, following(current.sample(sample.index)))
        while not current.finished.wait(_CLOSED_S):
            if self._closed:
                raise RuntimeError("the feed was closed")
        if current.error is not None:
            raise current.error
        contents = self._hand_out(current)
        self._current = None
        self._taken += 1
        if self._supervisor is not None:
            self._supervisor.ring()
        return current.job.plan, contents, current.results

    def stop(self) -> None:
        """Stop the workers, whatever they are at. A thread that waits in `next` is told."""
        if self._closed:
            return
        self._closed = True
        if self._supervisor is not None:
            self._supervisor.stop()
        self._in_order.put(RuntimeError("the feed was closed"))

    def close(self) -> None:
        """Stop, and give every slot back. No thread may be in `next`."""
        self.stop()
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None
        unused = [self._current]
        while not self._in_order.empty():
            unused.append(self._in_order.get())
        for running in unused:
            if not isinstance(running, _Running):
                continue
            if running.ticket is not None:
                running.ticket.wait()
            if running.lease is not None:
                running.lease.give_back()

    def _begin_jobs(self) -> Iterator[_Running[Plan, Result]]:
        """Start jobs until enough are under way, or there is no room for the one `_waiting`."""
        while not self._ended and self._begun - self._taken < self._ahead:
            try:
                job = self._waiting = self._waiting or next(self._jobs)
                what = f"slot {job.shape}"
                # All of one size, so that kept ones leave no gaps too small for others. With
                # nothing under way the wait is for copies that end by themselves.
                lease = (
                    self._arena.try_lease(self._largest, what=what)
                    if self._begun > self._taken
                    else self._arena.lease(self._largest, what=what)
                )
            except Exception as error:
                self._ended = True
                self._in_order.put(error)  # raised where this job is asked for
                return
            if lease is None:
                return
            lease.drop_pages()  # a slot takes memory as it is filled
            self._waiting = None
            self._begun += 1
            running = _Running[Plan, Result](job, lease, job.shape[0], [None] * job.shape[0])
            self._in_order.put(running)
            yield running

    def _begin_samples(self, running: _Running[Plan, Result]) -> Iterator[tuple[_Sample, Request]]:
        """The job's samples, each with its first request, but for those that have none."""
        for index in range(len(running.results)):
            filling = self._fill(running.job.plan, index, running.sample(index))
            sample = _Sample(running, index, filling)
            request = self._advance(sample, None)
            if request is not None:
                yield sample, request

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
            self._finish(running)
        return None

    def _finish(self, running: _Running[Plan, Result]) -> None:
        """The last sample is in: off to the device, and the slot returns when it is there."""
        assert running.lease is not None
        try:
            if running.error is not None:
                running.lease.give_back()
                running.lease = None
            elif self._lane is not None:
                slot = running.lease.tensor(running.job.shape)
                running.ticket = self._lane.to_device(slot, producer=HOST, lease=running.lease)
                running.lease.give_back(after=running.ticket)
                running.lease = None
        except BaseException as error:
            running.error = error
        running.finished.set()

    def _hand_out(self, running: _Running[Plan, Result]) -> Tensor:
        if self._lane is not None:
            assert running.ticket is not None
            on_cuda = self._lane.device.type == "cuda"
            consumer = torch.cuda.current_stream(self._lane.device) if on_cuda else HOST
            return running.ticket.read(consumer)
        assert running.lease is not None
        slot = running.lease.tensor(running.job.shape)
        running.lease.give_back()  # which the tensor, a view of it, puts off
        running.lease = None
        return slot if self._arena.stats().lendable >= self._largest else slot.clone()


class _Supervisor:
    """The thread between a feed and its worker processes."""

    def __init__(self, feed: Feed[Any, Any], workers: int, timeout_s: float, name: str) -> None:
        self._feed = feed
        self._file, self._nbytes = feed._arena.share()
        self._workers, self._timeout_s, self._name = workers, timeout_s, name
        self._stopping = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        feed._arena.tell(self._bell)
        self._thread = threading.Thread(target=self._run, name=f"vidgen-{name}", daemon=True)
        self._thread.start()

    def ring(self) -> None:
        os.eventfd_write(self._bell, 1)

    def stop(self) -> None:
        self._stopping = True
        self.ring()
        self._thread.join()
        self._feed._arena.tell(None)

    def close(self) -> None:
        """After `stop`, when nobody can ring any more."""
        os.close(self._bell)

    def _run(self) -> None:
        """Everything a worker process is for, from its start to its end, happens here: it ends with
        the thread that started it."""
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
            self._serve(processes, unfinished)
        except BaseException as error:
            for running in unfinished:
                running.error = running.error or error
                running.finished.set()
            self._feed._in_order.put(error)
        finally:
            if processes is not None:
                processes.close()

    def _serve(self, processes: Processes, unfinished: "list[_Running[Any, Any]]") -> None:
        feed = self._feed
        queue: deque[tuple[_Sample, Request]] = deque()
        under_way: dict[Task, _Sample] = {}
        while not self._stopping:
            for running in feed._begin_jobs():
                unfinished.append(running)
                queue += feed._begin_samples(running)
            while processes.idle() and queue:
                sample, request = queue.popleft()
                processes.submit(task := self._task(sample, request))
                under_way[task] = sample
            for_a_copy = feed._waiting is not None and feed._lane is not None
            answers = processes.collect(self._bell, _LOOK_AGAIN_S if for_a_copy else None)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._bell)
            for task, answer in answers:
                sample = under_way.pop(task)
                following = feed._advance(sample, answer)
                if following is not None:
                    queue.appendleft((sample, following))
            unfinished[:] = [running for running in unfinished if not running.finished.is_set()]

    def _task(self, sample: _Sample, request: Request) -> Task:
        running = sample.running
        assert running.lease is not None
        each = running.job.nbytes // running.job.shape[0]
        return Task(request, running.lease.offset + sample.index * each, running.job.shape[1:])
