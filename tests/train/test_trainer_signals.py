"""Ctrl-C, SIGTERM and SIGKILL of `python -m vidgen train`: the run goes on where it was saved."""

import json
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.runtime import checkpoint
from vidgen.train import Trainer
from vidgen.train.report.metrics import read_metrics

ENDLESS = ("train.steps=1_000_000", "checkpoint.keep_last=2")


def wait_until(child: "subprocess.Popen[str]", condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert child.poll() is None, child.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps_logged(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return len(read_metrics(run_dir)) if path.exists() else 0


def losses(run_dir: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run_dir)]


def goes_on_bit_for_bit(recipe: Recipe, step: int, undisturbed: Recipe) -> None:
    trainer = Trainer(recipe)
    assert trainer.step == step
    trainer.run(stop_after=step + 2)
    Trainer(undisturbed).run(stop_after=step + 2)
    found = read_metrics(recipe.run_dir)
    assert [record["step"] for record in found] == list(range(1, step + 3))
    assert losses(Path(recipe.run_dir)) == losses(Path(undisturbed.run_dir))
    last = f"step-{step + 2:09d}"
    for group in ("model", "ema", "optim"):
        mine, other = (
            checkpoint.read_tensors(Path(r.run_dir) / "checkpoints" / last, group)
            for r in (recipe, undisturbed)
        )
        assert [name for name in other if not mine[name].equal(other[name])] == [], group


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_polite_stop_saves_and_says_how_to_go_on(
    number: signal.Signals,
    code: int,
    start: Callable[..., "subprocess.Popen[str]"],
    recipe_file: Path,
    tiny: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "a run"
    options = (f"run_dir={run_dir}", *ENDLESS, "checkpoint.every=1_000_000", "--fresh")
    child = start("train", recipe_file, *options)
    wait_until(child, lambda: steps_logged(run_dir) >= 3)
    child.send_signal(number)
    shown, _ = child.communicate(timeout=120)
    assert child.returncode == code
    assert "Traceback" not in shown

    step = steps_logged(run_dir)
    newest = checkpoint.latest(run_dir / "checkpoints")
    assert newest is not None
    assert newest.name == f"step-{step:09d}"
    assert checkpoint.verify(newest) == []
    said = next(line for line in shown.splitlines() if line.startswith("stopped by"))
    assert f"stopped by {number.name} after step {step}" in said
    # What is printed goes on: it must not hold the --fresh of the command that was stopped.
    command = shlex.split(said.partition("To resume: ")[2])
    assert command == ["vidgen", "train", str(run_dir / "recipe.yaml")]
    goes_on_bit_for_bit(
        read_recipe(command[2], [], Recipe), step, tiny(*ENDLESS, run="undisturbed")
    )


def test_after_sigkill_the_newest_checkpoint_goes_on(
    start: Callable[..., "subprocess.Popen[str]"],
    recipe_file: Path,
    tiny: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    recipe = tiny(*ENDLESS, "checkpoint.every=2")
    run_dir, saved = Path(recipe.run_dir), tmp_path / "run" / "checkpoints"
    child = start("train", recipe_file, f"run_dir={run_dir}", *ENDLESS, "checkpoint.every=2")
    wait_until(child, lambda: bool(checkpoint.steps(saved)))
    child.kill()
    child.communicate()
    newest = checkpoint.latest(saved)
    assert newest is not None
    assert checkpoint.verify(newest) == []
    step = checkpoint.steps(saved)[-1]
    assert steps_logged(run_dir) >= step
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # the line it was at
    goes_on_bit_for_bit(recipe, step, tiny(*ENDLESS, run="undisturbed"))
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
