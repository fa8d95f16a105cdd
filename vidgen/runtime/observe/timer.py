"""Wall time of a training step by phase: data, forward, backward and so on."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from vidgen.runtime.observe.ranges import span

OTHER = "other"


class StepTimer:
    """Splits each step's wall time into phases that add up to the whole, exactly.

    Time outside every phase is "other"; the time of a nested phase is not counted in the outer
    one; a phase entered again (micro-steps) accumulates.

        timer = StepTimer(device)
        for ...:
            with timer.phase("data"): ...
            with timer.phase("forward"): ...
            phases = timer.lap()            # {"data": ms, "forward": ms, "other": ms}

    On CUDA the marks are events on the current stream, so a phase's time is what it adds to the
    device's timeline: kernels count when they run, not when they are launched, and a host wait
    hidden by queued kernels counts nothing. `lap` waits for the step to end.
    """

    def __init__(self, device: torch.device | str) -> None:
        device = torch.device(device)
        self._clock: _Clock = _CudaClock(device) if device.type == "cuda" else _HostClock()
        self._open: list[str] = []
        self.restart()

    def restart(self) -> None:
        """Start a step now, discarding the time since the last lap."""
        if self._open:
            raise ValueError(f"phase {self._open[-1]!r} is still open")
        self._marks = [(OTHER, self._clock.mark())]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`, and mark it as a range in a profile."""
        self._open.append(name)
        self._marks.append((name, self._clock.mark()))
        try:
            with span(name):
                yield
        finally:
            self._open.pop()
            outer = self._open[-1] if self._open else OTHER
            self._marks.append((outer, self._clock.mark()))

    def lap(self) -> dict[str, float]:
        """Milliseconds of each phase since the last lap, in order of entry, "other" last."""
        if self._open:
            raise ValueError(f"phase {self._open[-1]!r} is still open")
        marks = [*self._marks, (OTHER, self._clock.mark())]
        self._marks = marks[-1:]
        self._clock.settle(marks[-1][1])
        spent: dict[str, float] = {}
        for (name, began), (_, ended) in itertools.pairwise(marks):
            spent[name] = spent.get(name, 0.0) + self._clock.ms(began, ended)
        spent[OTHER] = spent.pop(OTHER)
        return spent


class _Clock(Protocol):
    def mark(self) -> Any: ...

    def settle(self, mark: Any) -> None:
        """Wait until `mark` and all earlier marks can be read."""

    def ms(self, began: Any, ended: Any) -> float: ...


class _HostClock:
    def mark(self) -> float:
        return time.perf_counter()

    def settle(self, mark: float) -> None:
        pass

    def ms(self, began: float, ended: float) -> float:
        return 1000 * (ended - began)


class _CudaClock:
    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def settle(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()

    def ms(self, began: torch.cuda.Event, ended: torch.cuda.Event) -> float:
        return began.elapsed_time(ended)
