"""A rank is killed, stopped, fails, meets NaN or turns slow: the run recovers, bit for bit.

torchrun starts two ranks again and again; `faulty.py` is `vidgen train` with one fault, once.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import vidgen
from vidgen.data import open_loader
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.train.report.metrics import read_metrics
from vidgen.train.supervise.recovery import SkipList, position

FAULTY = Path(__file__).with_name("faulty.py")
BUCKETS = "data.buckets=!replace {'32px_ar1:1': {1: {batch: 2}, 9: {batch: 2}, 17: {batch: 1}}}"
STEPS = 30
pytestmark = pytest.mark.slow


def command(recipe: Path, run_dir: Path, fault: str, *more: str, restarts: int) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words += ["--max-restarts", str(restarts), "--master-port", str(port), str(FAULTY), fault]
    words += [str(recipe), f"run_dir={run_dir}", BUCKETS, f"train.steps={STEPS}"]
    # On a busy machine any step may be slow: only the test of slow steps looks at their time.
    words += ["recovery.slow_factor=null"] if fault != "slow" else []
    return [*words, "checkpoint.every=2", "parallel.timeout_s=45", *more]


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(Path(vidgen.__file__).parents[1]),
    }


def torchrun(recipe: Path, run_dir: Path, fault: str, *more: str, restarts: int = 1) -> str:
    done = subprocess.run(
        command(recipe, run_dir, fault, *more, restarts=restarts),
        env=environment(),
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
        ("kill", "was killed by SIGKILL", ()),
        ("stop", "is stopped by a signal and has not moved for", ()),
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
    if fault != "nan":  # that all ranks see
        assert "rank 1" in text.splitlines()[1], text  # the culprit
        if fault != "slow":
            assert "rank 0" not in text.splitlines()[1], text
    if fault == "stop":
        assert "train_step" in text  # the stack of one that waits
    assert str(report) in shown


def test_slow_storage_is_no_hang(undisturbed: Path, recipe_file: Path, tmp_path: Path) -> None:
    """A save blocked for longer than a hang's limit, while the other rank waits in a collective."""
    shown = torchrun(recipe_file, tmp_path / "run", "storage", "parallel.timeout_s=30", restarts=0)
    assert curve(tmp_path / "run") == curve(undisturbed)
    assert not list((tmp_path / "run" / "failures").glob("2*")), shown


def test_storage_that_never_answers_ends_the_run(recipe_file: Path, tmp_path: Path) -> None:
    shown = torchrun(
        *(recipe_file, tmp_path / "run", "storage", "parallel.timeout_s=20"),
        "recovery.storage_timeout_s=25",
    )
    (report,) = (tmp_path / "run" / "failures").glob("2*.txt")
    line = report.read_text().splitlines()[1]
    assert "rank 1 (step 25, checkpoint): storage has not answered for 2" in line, shown


def test_ranks_end_with_their_launcher(recipe_file: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = command(recipe_file, run_dir, "none", "train.steps=100000", restarts=0)
    launcher = subprocess.Popen(
        words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        metrics = run_dir / "metrics.jsonl"
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, 200)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        ranks = [int(pid) for pid in children if b"faulty" in command_line(int(pid))]
        assert len(ranks) == 2
    finally:
        launcher.kill()
        launcher.wait()
    begin = time.monotonic()
    wait_for(lambda: not any(command_line(pid) for pid in ranks), 60)
    assert time.monotonic() - begin < 20  # a report included, on a busy machine
    steps = metrics.read_text().count("\n")
    time.sleep(1)
    assert metrics.read_text().count("\n") == steps
    (report,) = (run_dir / "failures").glob("2*.txt")
    # Who reaps the launcher first, this test or the watchdog, decides whether its status is known.
    line = report.read_text().splitlines()[1]
    assert line.startswith("the launcher ")
    assert line.endswith("; its ranks end too")


def command_line(pid: int) -> bytes:
    """Empty of a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def wait_for(what: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_batches_that_made_nan_are_skipped(
    undisturbed: Path, recipe_file: Path, tmp_path: Path
) -> None:
    torchrun(recipe_file, tmp_path / "run", "nan", "recovery.skip=true")
    skip_list = SkipList(tmp_path / "run")
    assert len(skip_list.positions) == 1
    # A run that knows of them from the beginning.
    (tmp_path / "told").mkdir()
    SkipList(tmp_path / "told").add(skip_list.positions, write=True)
    torchrun(recipe_file, tmp_path / "told", "none")
    assert curve(tmp_path / "run") == curve(tmp_path / "told")
    assert curve(tmp_path / "run") != curve(undisturbed)


def test_skipped_batches_are_counted_by_the_loader(recipe_file: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file, [], Recipe)
    with open_loader(recipe.data, seed=1, rank=0, world=1, device="cpu") as loader:
        first = next(loader)
        steps = loader.steps_in_epoch
        skip_list = SkipList(tmp_path)
        skip_list.add({(0, 1), (0, 2), (1, 0)}, write=True)
        assert position(loader) == (0, 1)
        SkipList(tmp_path).advance(loader)
        batch = next(loader)
        assert (batch.epoch, batch.step_in_epoch) == (first.epoch, 3)
        assert loader.state_dict()["skipped"] == 2
        while (batch.epoch, batch.step_in_epoch) != (0, steps - 1):
            skip_list.advance(loader)
            batch = next(loader)
        assert position(loader) == (1, 0)
        skip_list.advance(loader)
        batch = next(loader)
        assert (batch.epoch, batch.step_in_epoch) == (1, 1)
