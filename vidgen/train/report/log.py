"""The log of a run: a line a step, a progress bar, metrics.jsonl, TensorBoard, W&B."""

import json
import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from vidgen.errors import UserError
from vidgen.printable import printable
from vidgen.train.report.metrics import MetricsFile, Record, RunningZScore, read_metrics
from vidgen.train.report.wandb_run import WandbRun, scalars

__all__ = ["RunLog", "read_metrics"]

SCORED = ("loss", "grad_norm")


@dataclass(frozen=True)
class Kind:
    """What a validation measures, and how it is written."""

    name: str
    key: str  # in validation.jsonl
    form: str  # of their mean, on the console
    tag: str  # of each, in TensorBoard

    def summarise(self, figures: Mapping[str, float]) -> str:
        return self.form.format(sum(figures.values()) / len(figures))


LOSS = Kind("loss", "losses", "{:.4f}", "loss at t {}")
PSNR = Kind("PSNR", "psnr", "{:.2f} dB", "PSNR of {}")


class RunLog:
    """Writes what a training step reports to every place people look.

    `step` is the number of optimizer steps completed, so a run goes from 1 to `total_steps`.
    Metrics are numbers or 0-d tensors; `bucket` is text and `phases` maps a phase to its ms.
    Known names get a place in the console line; any other goes to the files alone.

        ms data_ms        wall time of the step, and of waiting for data within it
        mfu hfu           fractions of the dense peak
        memory_gb         peak memory of the device since the run began

    `wandb` names a project of Weights & Biases to log to as well; `config` is what it shows of the
    recipe. On a rank that does not log (`enabled=False`) every method does nothing.
    """

    def __init__(
        self,
        run_dir: Path,
        total_steps: int,
        *,
        tensorboard: bool = True,
        resume_step: int = 0,
        log_every: int = 1,
        enabled: bool = True,
        stream: TextIO | None = None,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if log_every < 1:
            raise ValueError(f"log_every must be at least 1, not {log_every}")
        self._total = total_steps
        self._log_every = log_every
        self._last_step = resume_step
        self._open = enabled
        self._enabled = enabled
        if not enabled:
            return
        self._stream = stream or sys.stdout
        self._events = _open_events(Path(run_dir), resume_step) if tensorboard else None
        self._wandb = WandbRun(wandb, Path(run_dir), config or {}) if wandb else None
        self._file = MetricsFile(Path(run_dir), resume_step)
        self._failing = False  # whether metrics.jsonl cannot be written at the moment
        self._scores = {name: RunningZScore() for name in SCORED}
        for name, score in self._scores.items():
            score.extend(r[name] for r in self._file.kept if name in r)
        self._bar = self._open_bar(resume_step)
        # (step, time) of recent steps: what the remaining time is judged by when there is no bar.
        self._pace = deque([(resume_step, time.monotonic())], maxlen=50)
        if self._file.dropped:
            self.line(
                f"{self._file.path}: dropped {self._file.dropped} lines of an earlier run "
                f"after step {resume_step}"
            )

    def step(self, step: int, **metrics: Any) -> None:
        """Record one completed step."""
        if not self._enabled:
            return
        if not self._open:
            raise ValueError("this RunLog is closed")
        if step <= self._last_step:
            raise ValueError(f"step {step} after step {self._last_step}: steps must increase")
        record: Record = {"step": step, "time": round(time.time(), 3)}
        for name, value in metrics.items():
            if value is not None:
                record[name] = _to_json(value)
        for name, score in self._scores.items():
            if name in record and (z := score.update(record[name])) is not None:
                record[name + "_z"] = z
        self._write_line(record)
        if self._events is not None:
            self._write_events(step, record)
        if self._wandb is not None:
            self._wandb.step(record)
        self._pace.append((step, time.monotonic()))
        if step % self._log_every == 0 or step == self._total:
            self.line(self._console(record))
        if self._bar is not None:
            self._bar.update(step - self._last_step)
        self._last_step = step

    def _write_line(self, record: Record) -> None:
        """A full disk does not end the run here: its checkpoints decide how long it goes on."""
        error = self._file.append(record)
        if (error is not None) != self._failing:
            self._failing = error is not None
            why = f"cannot be written ({error}); its lines wait in memory" if error else "is whole"
            self.line(f"{self._file.path} {why}")

    def _write_events(self, step: int, record: Record) -> None:
        events = self._events
        if events is None:
            return
        try:
            for name, value in scalars(record).items():
                events.add_scalar(name, value, step)
        except OSError as error:  # of its writing thread, which has ended
            self.line(f"TensorBoard events are no longer written: {error}")
            self._events = None

    def validation(
        self,
        step: int,
        kind: Kind,
        figures: Mapping[str, float],
        sheets: Mapping[str, NDArray[np.uint8]] | None = None,
        files: Mapping[str, Path] | None = None,
    ) -> None:
        """Figures of held-out clips; of each video frames side by side (HWC), and its file."""
        if not self._enabled:
            return
        record = {"step": step, kind.key: figures}
        with (self._file.path.with_name("validation.jsonl")).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if figures:
            self.line(f"validation at step {step}: {kind.name} {kind.summarise(figures)}")
        named = {f"validation/{kind.tag.format(of)}": figure for of, figure in figures.items()}
        if self._events is not None:
            for name, figure in named.items():
                self._events.add_scalar(name, figure, step)
            for title, sheet in (sheets or {}).items():
                self._events.add_image(f"validation/{title}", sheet, step, dataformats="HWC")
        if self._wandb is not None:
            self._wandb.validation(step, named, files or {})

    def line(self, text: str) -> None:
        """Print one line, above the progress bar if there is one."""
        if not self._enabled:
            return
        text = printable(text)
        if self._open and self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Close the files and the bar; closing twice is fine."""
        if not self._open:
            return
        self._open = False
        if self._bar is not None:
            self._bar.close()
        self._file.close()
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open_bar(self, resume_step: int) -> Any:
        if not self._stream.isatty():
            return None
        from tqdm import tqdm

        return tqdm(
            total=self._total,
            initial=resume_step,
            file=self._stream,
            unit="step",
            dynamic_ncols=True,
            leave=False,
        )

    def _console(self, record: Record) -> str:
        width = len(str(self._total))
        parts = [f"step {record['step']:>{width}}/{self._total}"]
        parts += [text for name in _COLUMNS if (text := _column(name, record))]
        if self._bar is None and (left := self._seconds_left()) is not None:
            parts.append(f"left {_duration(left)}")
        return " | ".join(parts)

    def _seconds_left(self) -> float | None:
        (first, began), (last, now) = self._pace[0], self._pace[-1]
        if last <= first:
            return None
        return (self._total - last) * (now - began) / (last - first)


def _open_events(run_dir: Path, resume_step: int) -> Any:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise UserError(
            "TensorBoard events were asked for and tensorboard is not installed: type "
            '`pip install "vidgen[train]"`, or switch TensorBoard off'
        ) from None
    from torch.utils.tensorboard import SummaryWriter

    # purge_step hides what an interrupted run had logged beyond the step it resumes from.
    purge = resume_step + 1 if resume_step else 0
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge, flush_secs=20)


def _to_json(value: Any) -> Any:
    """A metric as JSON can hold it: text, a number, or a mapping of names to numbers."""
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): _to_json(item) for key, item in value.items()}
    return float(value)


_COLUMNS = (
    "loss",
    "psnr",
    "grad_norm",
    "lr",
    "ms",
    "tokens_per_s",
    "videos_per_s",
    "mfu",
    "hfu",
    "data_ms",
    "memory_gb",
    "bucket",
)


def _column(name: str, record: Record) -> str | None:
    """The console's words for one metric, or None when this step did not report it."""
    value = record.get(name)
    if value is None:
        return None
    match name:
        case "loss":
            return f"loss {value:.4f}{_score(record, name)}"
        case "psnr":
            return f"PSNR {value:.2f} dB"
        case "grad_norm":
            return f"norm {value:.3g}{_score(record, name)}"
        case "lr":
            return f"lr {value:.2e}"
        case "ms":
            return f"{value:.0f} ms"
        case "tokens_per_s":
            return f"{_short(value)} tok/s"
        case "videos_per_s":
            return f"{_short(value)} videos/s"
        case "mfu" | "hfu":
            return f"{name.upper()} {100 * value:.1f}%"
        case "data_ms":
            return f"data {value:.0f} ms"
        case "memory_gb":
            return f"{value:.2f} GB"
        case _:
            return str(value)


def _score(record: Record, name: str) -> str:
    score = record.get(name + "_z")
    return "" if score is None else f" ({score:+.2f}z)"


def _short(value: float) -> str:
    for unit in ("", "k", "M"):
        if not math.isfinite(value) or abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}G"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"
