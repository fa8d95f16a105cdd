"""`vidgen quickstart` at toy size, through the command line; and what it does with an old run."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vidgen as package
from vidgen.cli.quickstart import BELOW_TARGET, PRODUCTS, Quickstart
from vidgen.data.synthetic.shapes import HELD_OUT, SCENES, TRAINED, Scene, render
from vidgen.errors import UserError
from vidgen.models.geometry import Geometry
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.sample import Pipeline, Request

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"
TOY = (
    *("train.steps=120", "checkpoint.every=20", "train.log_every=20", "optim.warmup=5"),
    *("model.hidden_size=32", "model.axes_dim=[4, 6, 6]"),
    *("model.depth=1", "model.depth_single_blocks=1", "sample.steps=2", "train.device=cpu"),
)


@pytest.fixture(autouse=True)
def _children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training runs in processes of its own: this vidgen, one thread."""
    monkeypatch.setenv("PYTHONPATH", str(Path(package.__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def places(folder: Path) -> tuple[str, ...]:
    manifest = folder / "data" / "manifest.parquet"
    return f"run_dir={folder}", f"data.manifest={manifest}"


@pytest.mark.slow
def test_the_whole_of_it_at_toy_size(
    vidgen: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    from vidgen.data.read.video import read_metadata
    from vidgen.runtime import checkpoint
    from vidgen.train.report.metrics import read_metrics

    folder = tmp_path / "run"
    status, shown, said = vidgen(
        "quickstart", "--recipe", RECIPE, "--clips", "1", *TOY, *places(folder)
    )
    assert status == BELOW_TARGET, said  # 120 steps teach nothing
    assert said.splitlines()[-1].startswith("vidgen: the quickstart is below its target: colour ")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["adherence"]["videos"] >= 48
    assert summary["held_out"]["videos"] > 0
    assert summary["control"]["videos"] == summary["adherence"]["videos"]

    # Killed after the checkpoint half way, resumed from it (or a later one), and finished.
    assert summary["killed_at"] > 60
    assert 60 <= summary["resumed_at"] <= summary["killed_at"]
    assert "killed at step" in shown
    records = read_metrics(folder)
    assert [record["step"] for record in records] == list(range(1, 121))
    assert checkpoint.steps(folder / "checkpoints") == [100, 120]

    videos = sorted((folder / "samples").glob("*.mp4"))
    assert len(videos) == summary["adherence"]["videos"]
    about = read_metadata(videos[0])
    assert about["prompt"] == "a red circle moving left"
    assert about["seed"] == "0"
    assert about["recipe"] == "quickstart step-000000120"
    assert read_metadata(sorted((folder / "control").glob("*.mp4"))[0])["prompt"] == ""
    page = (folder / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") == len(videos)
    # The page's verdicts and the summary's shares are of the same videos.
    for name in ("colour", "direction", "shape"):
        right = len(re.findall(f'title="{name} is right"', page))
        assert summary["adherence"][name] == round(right / len(videos), 4)
    assert "a red circle moving left" in page
    assert "killed, resumed" in page
    assert list((folder / "tensorboard").glob("events.*"))


class Painter:
    """A pipeline that draws exactly what it is asked; `paint` says what else it draws instead."""

    source, weights_hash = "painter", ""
    geometry = Geometry((4, 8, 8), causal=True, patch=2)

    def __init__(self, recipe: Recipe, paint: Callable[[Scene], Scene]) -> None:
        self.recipe, self.paint = recipe, paint

    def generate(self, requests: list[Request], together: bool) -> Iterator[np.ndarray]:
        for request in requests:
            _, colour, shape, _, direction = (request.prompt or SCENES[0].caption).split()
            scene = self.paint(Scene(colour, shape, direction))
            rng = np.random.default_rng(request.seed)
            yield render(scene, request.frames, request.height, rng)


@pytest.mark.parametrize("learnt", [True, False], ids=["learnt", "no colour learnt"])
def test_the_summary_is_what_the_videos_show(
    vidgen: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    learnt: bool,
) -> None:
    """With a model that draws every prompt, or every prompt in red, in place of the trained one."""
    folder = tmp_path / "run"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "manifest.parquet").touch()
    (folder / "metrics.jsonl").write_text('{"step": 120, "loss": 0.5}\n')
    painter = Painter(
        read_recipe(RECIPE, [*TOY], Recipe),
        lambda scene: scene if learnt else replace(scene, colour="red"),
    )
    monkeypatch.setattr(Quickstart, "_start_training", lambda _: child("pass"))
    monkeypatch.setattr(Pipeline, "from_checkpoint", lambda *_: painter)
    status, _, said = vidgen("quickstart", "--recipe", RECIPE, *TOY, *places(folder))
    summary = json.loads((folder / "summary.json").read_text())

    def shares(asked: Sequence[Scene], drawn: Callable[[Scene], Scene]) -> dict[str, float]:
        names = ("colour", "direction", "shape")
        same = {n: [getattr(drawn(s), n) == getattr(s, n) for s in asked] for n in names}
        rates = {n: round(sum(found) / len(asked), 4) for n, found in same.items()}
        return {**rates, "videos": len(asked)}

    extra = HELD_OUT * 2
    assert summary["trained_on"] == shares(TRAINED, painter.paint)
    assert summary["held_out"] == shares([*HELD_OUT, *extra], painter.paint)
    assert summary["adherence"] == shares([*SCENES, *extra], painter.paint)
    # Without a prompt it always draws the first scene, whatever it is judged against.
    assert summary["control"] == shares([*SCENES, *extra], lambda _: SCENES[0])
    if learnt:
        assert status == 0, said
        assert "below its target" not in said
    else:
        assert status == BELOW_TARGET
        assert re.fullmatch(
            r"vidgen: the quickstart is below its target: colour 2\d\.\d%, expected 95%",
            said.splitlines()[-1],
        )


@pytest.fixture
def quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quickstart:
    """Its phases 2 and 3 start a process that only ends; sampling and reporting do nothing."""
    overrides = [*TOY, *places(tmp_path / "run")]
    made = Quickstart(read_recipe(RECIPE, overrides, Recipe), str(RECIPE), overrides, 1)
    monkeypatch.setattr(made, "_start_training", lambda: child("pass"))
    for name in ("sample_and_judge", "summarise", "report", "say"):
        monkeypatch.setattr(made, name, lambda *args: None)
    monkeypatch.setattr("vidgen.cli.quickstart.below_target", lambda summary: [])
    return made


def child(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-S", "-c", code])


def test_a_finished_one_is_replaced_and_nothing_else_is_touched(
    quickstart: Quickstart, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "make_data", lambda: None)
    folder = quickstart.folder
    for name in PRODUCTS:
        path = folder / name
        if "." in name:
            path.write_text("old")
        else:
            path.mkdir(parents=True)
            (path / "old").touch()
    (folder / "notes.txt").write_text("mine")
    quickstart.run()
    assert "holds a finished quickstart; it is replaced" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_data_is_made_once_and_again_when_something_else_is_asked(
    quickstart: Quickstart,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = []

    def write_dataset(folder: Path, **asked: object) -> None:
        written.append(asked["clips"])
        (folder / "manifest.parquet").touch()

    monkeypatch.setattr("vidgen.data.synthetic.shapes.write_dataset", write_dataset)
    quickstart.make_data()
    quickstart.make_data()
    assert written == [((17, 1), (33, 1))]
    assert "is there already\n" in capsys.readouterr().out
    quickstart.clips = 5
    quickstart.make_data()
    assert written[1:] == [((17, 5), (33, 1))]
    # Another's data is neither removed nor overwritten.
    (quickstart.folder / "data" / "quickstart.json").unlink()
    quickstart.clips = 1
    quickstart.make_data()
    assert len(written) == 2
    assert "it is used as it is" in capsys.readouterr().out


def test_fresh_forgets_an_interrupted_one(
    quickstart: Quickstart, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidgen.runtime import checkpoint

    saved = quickstart.folder / "checkpoints"
    checkpoint.save(saved, 40, {}, {}, background=False)
    monkeypatch.setattr(quickstart, "make_data", lambda: None)
    quickstart.fresh = True
    quickstart.run()
    assert checkpoint.steps(saved) == []


def test_an_interrupted_one_goes_on(
    quickstart: Quickstart, capsys: pytest.CaptureFixture[str]
) -> None:
    from vidgen.runtime import checkpoint

    checkpoint.save(quickstart.folder / "checkpoints", 40, {}, {}, background=False)
    assert quickstart.train_until_killed() is None  # one interruption is enough
    assert "its checkpoint is used" in capsys.readouterr().out
    assert quickstart.train_to_the_end() == 40


def test_training_that_fails_ends_it(
    quickstart: Quickstart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "_start_training", lambda: child("raise SystemExit(2)"))
    with pytest.raises(UserError, match="exit code 2"):
        quickstart.train_to_the_end()


def test_ctrl_c_waits_for_the_child_and_says_how_to_go_on(
    quickstart: Quickstart, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    training = child(f"import time; time.sleep(0.5); open({str(saved)!r}, 'w')")
    with pytest.raises(KeyboardInterrupt), quickstart._minding(training):
        raise KeyboardInterrupt
    assert saved.exists()
    assert "the same `vidgen quickstart` goes on from there" in capsys.readouterr().out


def test_a_recipe_that_is_not_there(vidgen: Callable[..., tuple[int, str, str]]) -> None:
    status, _, said = vidgen("quickstart", "--recipe", "no.yaml")
    assert status == 2
    assert said.startswith("vidgen: error: there is no recipe 'no.yaml'")
