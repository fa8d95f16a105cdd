"""Runs stages one after the other, each within its limit, and keeps what each of them leaves."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stages import Stage, Words

ROOT = Path(__file__).resolve().parents[2]
OK, FAILED, CUT, KEPT = "ok", "FAILED", "cut", "kept from an earlier run"
_GRACE_S = 5.0  # from SIGINT to SIGKILL
_SHOWN = 40  # lines of a stage's output on the screen; its log has all of them


@dataclass
class Outcome:
    stage: str
    verdict: str  # OK, FAILED, CUT or KEPT
    why: str
    seconds: float
    limit: float
    commands: list[str]

    @property
    def said(self) -> str:
        return f"{self.verdict}: {self.why}" if self.why else self.verdict


@dataclass(frozen=True)
class Folder:
    """`rows` holds the JSON files of results; `path` the logs, the stages and the archive."""

    path: Path
    rows: Path

    @property
    def journal(self) -> Path:
        return self.path / "stages.jsonl"

    @property
    def archive(self) -> Path:
        return self.path.with_name(self.path.name + ".tar.gz")

    def note(self, entry: dict[str, object]) -> None:
        with self.journal.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def passed(self, commit: str) -> set[str]:
        """The stages that passed in earlier runs of the same commit."""
        if not self.journal.exists():
            return set()
        found: set[str] = set()
        same = False
        for line in self.journal.read_text().splitlines():
            with contextlib.suppress(ValueError):  # the line at which a run was killed
                entry = json.loads(line)
                if "commit" in entry:
                    same = entry["commit"] == commit
                elif same and entry.get("verdict") == OK:
                    found.add(entry["stage"])
        return found

    def pack(self) -> None:
        """Everything in one file, replaced whole: a run may be killed at any moment."""
        temporary = self.archive.with_suffix(".tmp")
        with tarfile.open(temporary, "w:gz") as archive:
            archive.add(self.path, arcname=self.path.name)
            if self.rows.exists() and not self.rows.is_relative_to(self.path):
                archive.add(self.rows, arcname=f"{self.path.name}/results/{self.rows.name}")
        temporary.replace(self.archive)


class Runner:
    """`left()` is the seconds that all stages together still have."""

    def __init__(
        self, folder: Folder, left: Callable[[], float], *, dry: bool, python: Words
    ) -> None:
        self.folder, self.left, self.dry, self.python = folder, left, dry, python
        self.outcomes: list[Outcome] = []
        self.interrupted = False

    def run(self, chosen: Sequence[Stage], passed: set[str]) -> None:
        for stage in chosen:
            outcome = self._outcome(stage, passed)
            self.outcomes.append(outcome)
            self.folder.note(asdict(outcome))
            self.folder.pack()
            print(f"=== {stage.name}: {outcome.said}, {outcome.seconds:.0f} s", flush=True)

    def _outcome(self, stage: Stage, passed: set[str]) -> Outcome:
        words = [self._words(stage, command) for command in self._commands(stage)]
        variables = () if self.dry else stage.environment
        told = [" ".join([*(f"{k}={v}" for k, v in variables), *w]) for w in words]
        limit = min(stage.seconds, self.left()) if not self.dry else self.left()
        outcome = Outcome(stage.name, CUT, "", 0.0, round(limit, 1), told)
        missing = [name for name in stage.needs if importlib.util.find_spec(name) is None]
        if stage.name in passed:
            outcome.verdict = KEPT
        elif self.interrupted:
            outcome.why = "the run was interrupted"
        elif missing:
            outcome.why = (
                f"needs {', '.join(missing)}: install them, or name a folder of their wheels in "
                "VIDGEN_WHEELS"
            )
        elif limit < 1:
            outcome.why = "no time was left"
        else:
            print(f"=== {stage.name}: {stage.what} (at most {limit:.0f} s)", flush=True)
            began = time.monotonic()
            outcome.verdict, outcome.why = self._together(stage, words, limit)
            outcome.seconds = round(time.monotonic() - began, 1)
        return outcome

    def _commands(self, stage: Stage) -> tuple[Words, ...]:
        return stage.small if self.dry else stage.commands

    def _words(self, stage: Stage, command: Words) -> list[str]:
        out = ["--out", str(self.folder.rows / f"{stage.result}.json")] if stage.result else []
        return [*self.python, *command, *out]

    def _together(self, stage: Stage, commands: list[list[str]], limit: float) -> tuple[str, str]:
        environment = {**os.environ, **dict(stage.environment)}
        if self.dry:  # small sizes on the CPU, also beside a GPU; Triton has no CPU
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        inherited = os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(ROOT), *([inherited] if inherited else [])]
        )
        processes, logs = [], []
        end = time.monotonic() + limit
        verdicts = []
        try:
            for number, words in enumerate(commands):
                suffix = f"-{number + 1}" if len(commands) > 1 else ""
                logs.append(self.folder.path / f"{stage.name}{suffix}.log")
                with logs[-1].open("w") as log:
                    processes.append(
                        subprocess.Popen(
                            words,
                            cwd=ROOT,
                            env=environment,
                            stdin=subprocess.DEVNULL,
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,
                        )
                    )
            for process, log in zip(processes, logs, strict=True):
                verdicts.append(self._wait(process, log, end, limit))
        except KeyboardInterrupt:
            self.interrupted = True
            verdicts.append((CUT, "the run was interrupted"))
        finally:
            for process in processes:
                stop(process)
        for log in logs:
            shown = log.read_text(errors="replace").splitlines()
            print("\n".join(shown[-_SHOWN:]), flush=True)
        worst = [v for kind in (FAILED, CUT) for v in verdicts if v[0] == kind]
        return worst[0] if worst else (OK, "")

    def _wait(
        self, process: "subprocess.Popen[bytes]", log: Path, end: float, limit: float
    ) -> tuple[str, str]:
        try:
            status = process.wait(max(end - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            stop(process)
            return CUT, f"after {limit:.0f} s"
        if status == 0:
            return OK, ""
        return FAILED, reason(status, log.read_text(errors="replace"))


def reason(status: int, output: str) -> str:
    """In a few words why a program failed, by its exit status and what it said last."""
    if re.search(r"OutOfMemoryError|CUDA out of memory|MemoryError", output):
        return "out of memory"
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"ended by {signal.Signals(-status).name}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return f"exit status {status}" + (f", {lines[-1][:120]}" if lines else "")


def stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGINT, so that it may say where it is; SIGKILL after a while; its children as well."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def machine() -> dict[str, object]:
    """What a reader of the archive needs to run it again."""

    def said(*words: str) -> str:
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=20, cwd=ROOT)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip()

    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": said("git", "describe", "--always", "--dirty", "--abbrev=40"),
        "gpus": said(
            *("nvidia-smi", "--format=csv,noheader"),
            "--query-gpu=name,memory.total,driver_version,compute_cap,clocks.max.sm,power.limit",
        ).splitlines(),
        "nvcc": said("nvcc", "--version").rpartition("\n")[2],
        "python": sys.version.split()[0],
        "packages": sorted(f"{d.name}=={d.version}" for d in importlib.metadata.distributions()),
        "command": sys.argv[1:],
    }
