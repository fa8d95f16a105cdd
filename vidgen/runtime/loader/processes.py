"""Worker processes that fill shared memory; a process that hangs is killed and replaced."""

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

Request = Callable[[np.ndarray], Any]
"""A picklable callable that receives the memory to fill; its return value is the answer."""

_START_S = 120.0  # limit for a process to start and import, on a busy machine or a slow file system


@dataclass(eq=False)
class Task:
    request: Request
    offset: int  # of the memory to fill, from the start of what is shared
    shape: tuple[int, ...]  # of it, in bytes
    attempts: int = 0


@dataclass(frozen=True)
class Lost:
    """The answer of a request whose process was lost."""

    reason: str


@dataclass(eq=False)
class _Worker:
    number: int
    process: subprocess.Popen[bytes]
    connection: Connection
    ready: bool = False
    task: Task | None = None
    since: float = field(default_factory=time.monotonic)  # of its start, then of its task

    def deadline(self, timeout_s: float) -> float:
        if self.task is None:
            return math.inf
        return self.since + (timeout_s if self.ready else _START_S)


class Processes:
    """A pool of worker processes. Only the creating thread may call its methods; the kernel ends
    the processes with that thread."""

    def __init__(
        self, count: int, *, file: int, nbytes: int, timeout_s: float, name: str = "loader"
    ) -> None:
        """Workers map the first `nbytes` of `file`. `timeout_s` is the time limit of a request."""
        self._file, self._nbytes = file, nbytes
        self._timeout_s, self._name = timeout_s, name
        self._workers = [self._start(number) for number in range(count)]

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers]

    def idle(self) -> bool:
        return any(worker.task is None for worker in self._workers)

    def submit(self, task: Task) -> None:
        worker = next(worker for worker in self._workers if worker.task is None)
        worker.task, worker.since = task, time.monotonic()
        task.attempts += 1
        with contextlib.suppress(OSError):  # it died; `collect` handles that
            worker.connection.send((task.offset, task.shape, task.request))

    def collect(self, bell: int, at_most_s: float | None = None) -> list[tuple[Task, Any]]:
        """Wait for answers, the eventfd `bell` or `at_most_s`. A hung process is replaced and its
        request is `Lost`; the request of a process that died is retried once, as it may not be
        the cause."""
        soonest = min(worker.deadline(self._timeout_s) for worker in self._workers)
        left = None if soonest == math.inf else max(0.0, soonest - time.monotonic())
        if at_most_s is not None:
            left = at_most_s if left is None else min(left, at_most_s)
        heard = wait([bell, *(worker.connection for worker in self._workers)], left)
        answers = []
        for place, worker in enumerate(self._workers):
            if worker.connection in heard:
                answers += self._hear(place)
            elif time.monotonic() > worker.deadline(self._timeout_s):
                answers += self._give_up(place)
        return answers

    def _hear(self, place: int) -> list[tuple[Task, Any]]:
        worker = self._workers[place]
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            return self._died(place)
        if not worker.ready:
            worker.ready, worker.since = True, time.monotonic()
            return []
        task, worker.task = worker.task, None
        assert task is not None
        return [(task, answer)]

    def _died(self, place: int) -> list[tuple[Task, Any]]:
        worker = self._workers[place]
        status = worker.process.wait()
        if not worker.ready:
            raise RuntimeError(
                f"a worker process of the {self._name} ended with status {status} before it was "
                "ready; see its output above"
            )
        self._workers[place] = self._replace(worker)
        if worker.task is None:
            return []
        if worker.task.attempts < 2:
            self.submit(worker.task)
            return []
        return [(worker.task, Lost(f"ended its worker process twice ({_how(status)})"))]

    def _give_up(self, place: int) -> list[tuple[Task, Any]]:
        worker = self._workers[place]
        if not worker.ready:
            raise RuntimeError(
                f"a worker process of the {self._name} did not start in {_START_S:g} s"
            )
        self._workers[place] = self._replace(worker)
        assert worker.task is not None
        reason = f"took longer than {self._timeout_s:g} s and was abandoned"
        return [(worker.task, Lost(reason))]

    def close(self) -> None:
        """Kill all workers at once; they hold no resources except the shared memory."""
        for worker in self._workers:
            self._end(worker)
        self._workers = []

    def _start(self, number: int) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = (os.getpid(), theirs.fileno(), self._file, self._nbytes)
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "vidgen.runtime.loader.worker"),
                    f"vidgen-{self._name}{number}"[:15],
                    *map(str, arguments),
                ],
                pass_fds=(theirs.fileno(), self._file),
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )
        return _Worker(number, process, Connection(ours.detach()))

    def _replace(self, worker: _Worker) -> _Worker:
        self._end(worker)
        return self._start(worker.number)

    def _end(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.wait()
        worker.connection.close()


def _environment() -> dict[str, str]:
    """The workers' environment: one thread each, and the same module path. Freed memory is returned
    to the system at once; the allocator would otherwise keep 10 MB of decoded frames."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 17),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 17),
    }


def _how(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
