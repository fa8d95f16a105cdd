"""Every errno at every call that names a file of the user: one line with the file, no traceback.

An audit hook sees each open, mkdir, rename, remove and listing, whoever makes it in Python; reads
and fsyncs are replaced. The call with a given number fails.
"""

import builtins
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli.conftest import RECIPE
from tests.robustness.trials import FACTOR, rng
from vidgen.cli.main import main
from vidgen.data.read.video import write_image
from vidgen.runtime import checkpoint

ERRNOS = (errno.EIO, errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EMFILE, errno.ESTALE)
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.listdir", "os.scandir")


class Faults:
    """Counts calls on files under a folder; one of them fails."""

    def __init__(self) -> None:
        self.folder, self.calls, self.at, self.code = "", 0, -1, 0
        self.failed = ""

    def arm(self, folder: Path, at: int, code: int) -> None:
        self.folder, self.calls, self.at, self.code, self.failed = str(folder), 0, at, code, ""

    def call(self, path: Any, *, named: bool = True) -> None:
        if not self.folder or not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.fsdecode(path)
        if not os.path.abspath(name).startswith(self.folder):
            return
        self.calls += 1
        if self.calls - 1 == self.at:
            self.failed = name
            raise OSError(self.code, os.strerror(self.code), *([name] if named else []))


FAULTS = Faults()


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if FAULTS.folder and event in EVENTS:
        FAULTS.call(args[0])


sys.addaudithook(_audit)  # it cannot be removed; without a folder it does nothing


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    real_open, real_sync = io.open, os.fsync

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        made = real_open(file, mode, *args, **kwargs)
        if "r" in mode and isinstance(file, str | os.PathLike):
            real = made.read

            def read(*size: int) -> Any:
                FAULTS.call(file, named=False)  # as the system reports it: without a name
                return real(*size)

            class Reading:
                def __getattr__(self, name: str) -> Any:
                    return getattr(made, name)

                def __enter__(self) -> Any:
                    return self

                def __exit__(self, *_: object) -> None:
                    made.close()

                def __iter__(self) -> Any:
                    return iter(made)

            reading: Any = Reading()
            reading.read = read
            return reading if FAULTS.folder and str(file).startswith(FAULTS.folder) else made
        return made

    def fsync(descriptor: int) -> None:
        FAULTS.call(os.readlink(f"/proc/self/fd/{descriptor}"), named=False)
        real_sync(descriptor)

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr(os, "fsync", fsync)
    yield FAULTS
    FAULTS.folder = ""


def listing(folder: Path) -> list[str]:
    for number in range(2):
        write_image(folder / "clips" / f"{number}.png", np.zeros((8, 8, 3), np.uint8))
        (folder / "clips" / f"{number}.txt").write_text(f"caption {number}")
    return ["manifest", str(folder / "clips"), "--out", str(folder / "clips.parquet")]


def showing(folder: Path) -> list[str]:
    (folder / "a.yaml").write_text(RECIPE.format(folder=folder))
    return ["recipe", "show", str(folder / "a.yaml")]


def copying(folder: Path) -> list[str]:
    return ["recipe", "copy", "stage1", str(folder / "mine.yaml")]


def verifying(folder: Path) -> list[str]:
    tensors = {"model": {"a": torch.arange(30.0)}}
    checkpoint.save(folder / "checkpoints", 5, tensors, {"x": {}}, background=False)
    return ["ckpt", "verify", str(folder / "checkpoints" / "step-000000005")]


@pytest.mark.parametrize("prepare", [listing, showing, copying, verifying])
def test_a_call_that_fails(
    prepare: Callable[[Path], list[str]],
    faults: Faults,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = prepare(tmp_path)
    written = [Path(text) for text in argv[3:] if text.startswith(str(tmp_path))]

    def command() -> int:
        for path in written:
            path.unlink(missing_ok=True)
        return main(argv)

    assert command() == 0, capsys.readouterr().err
    faults.arm(tmp_path, -1, 0)
    command()
    calls, draw = faults.calls, rng(f"errno {argv[:2]}")
    assert calls >= 1, "no call of this command is seen"
    tried, failures = 0, []
    trials = [(at, code) for at in range(calls) for code in ERRNOS]
    for at, code in draw.sample(trials, min(len(trials), 60 * FACTOR)):
        faults.folder = ""
        for path in written:
            path.unlink(missing_ok=True)
        faults.arm(tmp_path, at, code)
        capsys.readouterr()
        tried += 1
        try:
            status = main(argv)
        except Exception as error:
            failures.append(f"call {at} ({faults.failed}): {error!r}")
            continue
        finally:
            faults.folder = ""
        said = capsys.readouterr().err.strip()
        name = Path(faults.failed).name.lstrip(".").partition(".")[0]
        if status not in (0, 2) or (status == 2 and (name not in said or "Traceback" in said)):
            failures.append(
                f"call {at} ({faults.failed}, {errno.errorcode[code]}): {status} {said}"
            )
    print(f"errno ({' '.join(argv[:2])}): tried {tried}, held {tried - len(failures)}")
    assert not failures, f"{len(failures)} of {tried}: {failures[:4]}"


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() == 0:
        (tmp_path / "file").write_text("")  # root may write anywhere but beneath a file
        out = tmp_path / "file" / "mine.yaml"
    else:
        tmp_path.chmod(0o500)
        out = tmp_path / "mine.yaml"
    assert main(["recipe", "copy", "stage1", str(out)]) == 2
    error = capsys.readouterr().err
    assert str(out) in error
    assert error.count("\n") == 1
