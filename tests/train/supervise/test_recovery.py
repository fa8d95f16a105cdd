"""A rank is killed, stopped, fails, meets NaN or turns slow: the run recovers, bit for bit.

torchrun starts two ranks again and again; `faulty.py` is `vidgen train` with one fault, once.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import vidgen
from vidgen.data import open_loader
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.train.report.metrics import read_metrics
from vidgen.train.supervise.recovery import Skips, position

FAULTY = Path(__file__).with_name("faulty.py")
BUCKETS = "data.buckets=!replace {'32px_ar1:1': {1: {batch: 2}, 9: {batch: 2}, 17: {batch: 1}}}"
STEPS = 30


def torchrun(recipe: Path, run_dir: Path, fault: str, *more: str, restarts: int = 1) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), "--master-port", str(port), str(FAULTY), fault]
    command += [str(recipe), f"run_dir={run_dir}", BUCKETS, f"train.steps={STEPS}"]
    done = subprocess.run(
        [*command, "checkpoint.every=2", "parallel.timeout_s=45", *more],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": str(Path(vidgen.__file__).parents[1]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def curve(run_dir: Path) -> list[tuple[int, float, float]]:
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(run_dir)]


@pytest.fixture(scope="module")
def undisturbed(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    said = torchrun(recipe_file, folder / "run", "none", restarts=0)
    assert not list((folder / "run" / "failures").glob("2*")), said
    return folder / "run"


@pytest.mark.parametrize(
    ("fault", "said", "more"),
    [
        ("kill", "has ended without a word", ()),
        ("stop", "has not moved for", ()),
        ("raise", "ValueError: injected", ()),
        ("nan", "loss nan", ()),
        ("slow", "slow steps in a row", ("recovery.slow_factor=10", "recovery.slow_steps=2")),
    ],
)
def test_recovered_losses_are_an_undisturbed_runs(
    fault: str,
    said: str,
    more: tuple[str, ...],
    undisturbed: Path,
    recipe_file: Path,
    tmp_path: Path,
) -> None:
    shown = torchrun(recipe_file, tmp_path / "run", fault, *more)
    assert curve(tmp_path / "run") == curve(undisturbed)
    (report,) = (tmp_path / "run" / "failures").glob("2*.txt")
    text = report.read_text()
    assert said in text.splitlines()[1], text
    for rank in range(2):
        assert f"-- rank {rank}" in text
    if fault in ("stop", "slow"):
        assert "rank 1" in text.splitlines()[1], text  # the culprit
    if fault == "stop":
        assert "_train_step" in text  # the stack of one that waits
    assert str(report) in shown


def test_batches_that_made_nan_are_skipped(
    undisturbed: Path, recipe_file: Path, tmp_path: Path
) -> None:
    torchrun(recipe_file, tmp_path / "run", "nan", "recovery.skip=true")
    skips = Skips(tmp_path / "run")
    assert len(skips.positions) == 1
    # A run that knows of them from the beginning.
    (tmp_path / "told").mkdir()
    Skips(tmp_path / "told").add(skips.positions, write=True)
    torchrun(recipe_file, tmp_path / "told", "none")
    assert curve(tmp_path / "run") == curve(tmp_path / "told")
    assert curve(tmp_path / "run") != curve(undisturbed)


def test_skips_are_counted_by_the_loader(recipe_file: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file, [], Recipe)
    with open_loader(recipe.data, seed=1, rank=0, world=1, device="cpu") as loader:
        first = next(loader)
        steps = loader.steps_in_epoch
        skips = Skips(tmp_path)
        skips.add({(0, 1), (0, 2), (1, 0)}, write=True)
        assert position(loader) == (0, 1)
        batch = Skips(tmp_path).next(loader)
        assert (batch.epoch, batch.step_in_epoch) == (first.epoch, 3)
        assert loader.state_dict()["skipped"] == 2
        while (batch.epoch, batch.step_in_epoch) != (0, steps - 1):
            batch = skips.next(loader)
        assert position(loader) == (1, 0)
        batch = skips.next(loader)
        assert (batch.epoch, batch.step_in_epoch) == (1, 1)
