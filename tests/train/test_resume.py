"""Twenty steps are ten and ten more, bit for bit: weights, moments, average, samples, numbers."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import vidgen
from vidgen.data.read.video import read_clip
from vidgen.recipe.reader import dump_yaml, read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.runtime import checkpoint
from vidgen.train import Trainer
from vidgen.train.report.metrics import read_metrics

KILLED = Path(__file__).with_name("killed_in_save.py")
STEPS, HALF, BETWEEN = 20, 10, 15
OPTIONS = (
    *(f"train.steps={STEPS}", "checkpoint.every=5", "optim.decay_to=1e-4"),
    *(f"validate.every={STEPS}", "validate.prompts=[a red circle]"),
    *("validate.frames=9", "validate.sample_steps=2"),
)


@pytest.fixture(scope="module")
def straight(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    Trainer(read_recipe(recipe_file, [f"run_dir={run_dir}", *OPTIONS], Recipe)).run()
    return run_dir


def same_run(found: Path, expected: Path) -> None:
    curves = [
        [(r["step"], r["loss"], r["grad_norm"], r["loss_by_t"]) for r in read_metrics(run)]
        for run in (found, expected)
    ]
    assert len(curves[0]) == STEPS
    assert curves[0] == curves[1]
    last, wanted = (run / "checkpoints" / f"step-{STEPS:09d}" for run in (found, expected))
    assert checkpoint.verify(last) == []
    assert checkpoint.groups(last) == checkpoint.groups(wanted)
    for group in checkpoint.groups(wanted):
        mine, other = (checkpoint.read_tensors(step, group) for step in (last, wanted))
        assert mine.keys() == other.keys()
        assert [name for name in other if not torch.equal(mine[name], other[name])] == [], group
    for part in ("loader", "trainer"):
        assert checkpoint.read_objects(last)[part] == checkpoint.read_objects(wanted)[part]
    samples = [run / "validation" / f"step-{STEPS:09d}" / "0000.mp4" for run in (found, expected)]
    # Its pixels are not compared: they depended once on the tests that ran before in this process.
    shapes = [read_clip(path, range(9)).shape for path in samples]
    assert shapes[0] == shapes[1]


def test_ten_and_ten(tiny: Callable[..., Recipe], straight: Path) -> None:
    recipe = tiny(*OPTIONS)
    Trainer(recipe).run(stop_after=HALF)
    again = Trainer(recipe)
    assert again.step == HALF
    again.run()
    same_run(Path(recipe.run_dir), straight)


def test_ten_and_ten_around_a_kill_in_the_middle_of_a_save(
    tiny: Callable[..., Recipe], straight: Path, tmp_path: Path
) -> None:
    recipe = tiny(*OPTIONS)
    (tmp_path / "recipe.yaml").write_text(dump_yaml(recipe))
    child = subprocess.run(
        [sys.executable, str(KILLED), str(BETWEEN), str(tmp_path / "recipe.yaml")],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(vidgen.__file__).parents[1]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert child.returncode == -signal.SIGKILL, child.stdout
    saved = Path(recipe.run_dir) / "checkpoints"
    assert checkpoint.steps(saved) == [5, HALF]
    assert checkpoint.leftovers(saved), "nothing was half written: the kill came too late"
    assert len(read_metrics(recipe.run_dir)) >= BETWEEN
    again = Trainer(recipe)
    assert again.step == HALF
    again.run()
    assert not checkpoint.leftovers(saved)
    same_run(Path(recipe.run_dir), straight)
