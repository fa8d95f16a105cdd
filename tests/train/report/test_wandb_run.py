"""Weights & Biases, by a stand-in that keeps what it is told."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vidgen.errors import UserError
from vidgen.recipe.schema import Recipe
from vidgen.train import Trainer
from vidgen.train.report.log import LOSS, RunLog


class FakeRun:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.logged, self.metrics = settings, [], []
        self.finished = False

    def log(self, values: dict[str, Any]) -> None:
        assert not self.finished
        self.logged.append(values)

    def define_metric(self, name: str, step_metric: str) -> None:
        self.metrics.append((name, step_metric))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    begun: list[FakeRun] = []

    def init(**settings: Any) -> FakeRun:
        begun.append(FakeRun(settings))
        return begun[-1]

    def media(kind: str) -> Callable[..., tuple[str, str, Any]]:
        return lambda path, caption, **more: (kind, path, caption)

    fake = SimpleNamespace(init=init, Video=media("video"), Image=media("image"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return begun


def test_scalars_and_media_arrive_under_tensorboard_s_names(
    runs: list[FakeRun], tmp_path: Path
) -> None:
    log = RunLog(
        tmp_path, 10, tensorboard=False, stream=io.StringIO(), wandb="films", config={"name": "r"}
    )
    with log:
        log.step(1, loss=0.5, loss_by_t={"0.1": 0.25}, bucket="256px", phases={"data": 3.0})
        sheet = np.zeros((2, 2, 3), np.uint8)
        files = {"a cat": tmp_path / "0.mp4", "a still": tmp_path / "1.png"}
        log.validation(1, LOSS, {"0.5": 0.75}, {"a cat": sheet}, files)
    (run,) = runs
    assert run.finished
    assert run.settings["project"] == "films"
    assert run.settings["name"] == "r"
    assert run.metrics == [("*", "step")]
    assert run.logged[0] == {
        "step": 1,
        "train/loss": 0.5,
        "loss_by_t/0.1": 0.25,
        "phases/data": 3.0,
    }
    assert run.logged[1] == {
        "step": 1,
        "validation/loss at t 0.5": 0.75,
        "validation/a cat": ("video", str(tmp_path / "0.mp4"), "a cat"),
        "validation/a still": ("image", str(tmp_path / "1.png"), "a still"),
    }


def test_a_resumed_run_goes_on_in_the_same_one(
    runs: list[FakeRun], tiny: Callable[..., Recipe]
) -> None:
    recipe = tiny("log.wandb=films", "train.steps=2")
    Trainer(recipe).run(stop_after=1)
    Trainer(recipe).run()
    Trainer(recipe, fresh=True).run(stop_after=1)
    first, second, fresh = (run.settings for run in runs)
    assert first["id"] == second["id"] != fresh["id"]
    assert first["resume"] == "allow"
    assert first["config"]["optim"]["lr"] == recipe.optim.lr
    assert [values["step"] for run in runs[:2] for values in run.logged] == [1, 2]
    assert all(run.finished for run in runs)


def test_off_unless_asked_for(runs: list[FakeRun], tmp_path: Path) -> None:
    for options in ({}, {"wandb": "films", "enabled": False}):
        with RunLog(tmp_path, 3, tensorboard=False, stream=io.StringIO(), **options) as log:
            log.step(1, loss=1.0)
    assert runs == []


def test_without_the_package_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r'pip install "vidgen\[wandb\]"'):
        RunLog(tmp_path, 3, tensorboard=False, stream=io.StringIO(), wandb="films")
