"""Profiles a few training steps: torch trace, ranges for nsys, snapshot of GPU memory."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from vidgen.errors import UserError
from vidgen.runtime.observe.ranges import recording


def parse_steps(text: str) -> tuple[int, int]:
    """First and last step of "10-12" or "10", the format of `--profile steps=`."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    if match:
        first, last = int(match[1]), int(match[2] or match[1])
        if 1 <= first <= last:
            return first, last
    raise UserError(f"steps to profile: found {text!r}, expected a range such as 10-12 from step 1")


class StepTrace:
    """Profiles steps `first` to `last`, both included, and writes into `directory`.

        trace = StepTrace(directory, first=10, last=12, device=device, rank=rank)
        with trace:
            for step in ...:
                with trace.step(step): ...

    After the last step, or when the run ends, it writes trace-rank0.json.gz (chrome://tracing,
    Perfetto) and, on CUDA, memory-rank0.pickle (pytorch.org/memory_viz). The steps are also a
    cudaProfilerApi range, for `nsys profile --capture-range=cudaProfilerApi`.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        first: int,
        last: int,
        device: torch.device | str,
        rank: int = 0,
    ) -> None:
        self._directory = Path(directory)
        self._first, self._last = first, last
        self._cuda = torch.device(device).type == "cuda"
        self._rank = rank
        self._running = ExitStack()
        self._profiler: torch.profiler.profile | None = None
        self.written: list[Path] = []

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        if self._first <= step <= self._last and self._profiler is None and not self.written:
            self._start()
        if self._profiler is None:
            yield
            return
        with torch.profiler.record_function(f"step {step}"):
            yield
        if step >= self._last:
            self.close()

    def close(self) -> None:
        """Stop and write what was recorded; does nothing if not recording."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        with self._running:
            if self._cuda:
                torch.cuda.synchronize()
                torch.cuda.profiler.stop()
            profiler.stop()
            self._directory.mkdir(parents=True, exist_ok=True)
            trace = self._directory / f"trace-rank{self._rank}.json.gz"
            profiler.export_chrome_trace(str(trace))
            self.written.append(trace)
            if self._cuda:
                snapshot = self._directory / f"memory-rank{self._rank}.pickle"
                torch.cuda.memory._dump_snapshot(str(snapshot))
                self.written.append(snapshot)

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._cuda:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=200_000)
            self._running.callback(torch.cuda.memory._record_memory_history, enabled=None)
            torch.cuda.profiler.start()
        self._profiler = torch.profiler.profile(
            activities=activities, record_shapes=True, profile_memory=True
        )
        self._profiler.start()
        self._running.enter_context(recording())
