"""One process: resuming, accumulation, recomputation, conditions, first weights, a fresh start."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vidgen.errors import UserError
from vidgen.models.mmdit import MMDiT
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.runtime import checkpoint
from vidgen.train import Trainer
from vidgen.train.report.metrics import read_metrics

MakeRecipe = Callable[..., Recipe]


def train(recipe: Recipe, stop_after: int | None = None) -> Path:
    Trainer(recipe).run(stop_after=stop_after)
    return Path(recipe.run_dir)


def curve(run_dir: Path) -> list[tuple[int, float, float]]:
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(run_dir)]


def state(run_dir: Path, step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    path = run_dir / "checkpoints" / f"step-{step:09d}"
    assert checkpoint.verify(path) == []
    tensors = {
        f"{group}/{name}": tensor
        for group in checkpoint.groups(path)
        for name, tensor in checkpoint.read_tensors(path, group).items()
    }
    return tensors, checkpoint.read_objects(path)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def straight(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps without a break, with checkpoints at 3 and 6."""
    torch.set_num_threads(1)
    run_dir = tmp_path_factory.mktemp("runs") / "straight"
    return train(read_recipe(recipe_file, [f"run_dir={run_dir}"], Recipe))


def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(tiny: MakeRecipe, straight: Path) -> None:
    recipe = tiny(run="resumed")
    run_dir = train(recipe, stop_after=3)
    again = Trainer(recipe)
    assert again.step == 3
    assert again.run() == 6

    assert curve(run_dir) == curve(straight)
    tensors, objects = state(run_dir, 6)
    expected, expected_objects = state(straight, 6)
    assert {name.partition("/")[0] for name in tensors} == {"model", "ema", "optim"}
    assert same(tensors, expected)
    assert objects["loader"] == expected_objects["loader"]
    assert objects["trainer"]["step"] == 6
    assert objects["trainer"] == expected_objects["trainer"]
    # The comparison can fail: three steps earlier nothing is the same.
    earlier, _ = state(straight, 3)
    assert not any(torch.equal(earlier[n], tensors[n]) for n in tensors if n.startswith("ema/"))


def test_a_run_is_repeatable_and_its_seed_counts(tiny: MakeRecipe, straight: Path) -> None:
    assert curve(train(tiny(run="again"))) == curve(straight)
    assert curve(train(tiny("seed=43", run="other")))[0] != curve(straight)[0]


def test_steps_are_logged_before_they_are_saved(
    tiny: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a crash between the two leaves a hole in metrics.jsonl that no resume fills."""
    recipe, logged = tiny("train.steps=2", "checkpoint.every=1"), []
    save = checkpoint.save

    def watched(root: Path, step: int, *args: Any, **more: Any) -> checkpoint.Saving:
        logged.append((step, read_metrics(recipe.run_dir)[-1]["step"]))
        return save(root, step, *args, **more)

    monkeypatch.setattr(checkpoint, "save", watched)
    train(recipe)
    assert logged == [(1, 1), (2, 2)]


def test_a_finished_run_has_nothing_left_to_do(
    tiny: MakeRecipe, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (straight / "metrics.jsonl").read_bytes()
    assert Trainer(tiny(f"run_dir={straight}")).run() == 6
    assert "resumed at step 6 of 6" in capsys.readouterr().out
    assert (straight / "metrics.jsonl").read_bytes() == before


def test_accumulation_is_a_larger_batch(tiny: MakeRecipe) -> None:
    """An epoch of 8 clips: one batch of them, or two of half in either order."""
    whole = tiny("data.buckets=!replace {'32px_ar1:1': {17: {batch: 8}}}", run="whole")
    halves = tiny(
        "data.buckets=!replace {'32px_ar1:1': {17: {batch: 4}}}",
        "train.accumulate=2",
        run="halves",
    )
    # fp32 sums in another order, through six AdamW steps that divide by small numbers.
    for (_, loss, norm), (_, loss2, norm2) in zip(
        curve(train(whole)), curve(train(halves)), strict=True
    ):
        assert loss2 == pytest.approx(loss, rel=1e-4)
        assert norm2 == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("plan", ["recompute.dual=1", "recompute.single=1"])
def test_recomputing_changes_no_bit(tiny: MakeRecipe, straight: Path, plan: str) -> None:
    run_dir = train(tiny(plan, run="recomputed"))
    assert curve(run_dir) == curve(straight)
    assert same(state(run_dir, 6)[0], state(straight, 6)[0])
    first = read_metrics(run_dir)[-1]
    assert first["hfu"] > first["mfu"]
    assert read_metrics(straight)[-1]["hfu"] == read_metrics(straight)[-1]["mfu"]


def test_ema_follows_the_weights(tiny: MakeRecipe) -> None:
    recipe = tiny("train.steps=3", "checkpoint.every=1")
    run_dir = train(recipe)
    average: dict[str, torch.Tensor] = {}
    model = MMDiT(recipe.model)
    model.init_weights(torch.Generator().manual_seed(recipe.seed))
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in (1, 2, 3):
        tensors, _ = state(run_dir, step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name in average:
            average[name] = decay * average[name] + (1 - decay) * tensors[f"model/{name}"]
            torch.testing.assert_close(tensors[f"ema/{name}"], average[name])


CONDITIONS = (
    *("model.cond_embed=true", "flow.shift=1.0"),
    "conditions.weights=!replace {t2v: 1, i2v_head: 2, i2v_loop: 1, v2v_head: 2}",
    "data.buckets=!replace {'32px_ar1:1': {1: {batch: 4}, 17: {batch: 4}}}",
)


def test_image_and_video_conditions_train(tiny: MakeRecipe) -> None:
    recipe = tiny(*CONDITIONS)
    run_dir = train(recipe)
    tensors, _ = state(run_dir, 6)
    assert tensors["model/cond_in.weight"].abs().max() > 0  # it began at zero: it was taught
    assert curve(run_dir)[-1][1] < curve(run_dir)[0][1]


def test_another_runs_weights_are_where_training_begins(tiny: MakeRecipe, straight: Path) -> None:
    """From text to video to image conditions, as from stage 1 to stage 2."""
    trained, _ = state(straight, 6)
    for source in (straight, straight / "checkpoints" / "step-000000006"):
        trainer = Trainer(
            tiny("model.cond_embed=true", f"train.init_from={source}", run=f"from {source.name}")
        )
        assert trainer.step == 0
        for name, parameter in trainer.named.items():
            if name.startswith("cond_in"):
                assert not parameter.any()
            else:
                assert torch.equal(parameter, trained[f"model/{name}"])
    with pytest.raises(UserError, match="nowhere"):
        Trainer(tiny("train.init_from=/nowhere", run="lost"))


def test_first_weights_are_not_loaded_over_a_resumed_run(tiny: MakeRecipe, straight: Path) -> None:
    recipe = tiny(f"train.init_from={straight}", run="second")
    train(recipe, stop_after=3)
    expected, _ = state(Path(recipe.run_dir), 3)
    again = Trainer(recipe)
    assert all(torch.equal(p, expected[f"model/{name}"]) for name, p in again.named.items())


def test_imported_weights_are_not_resumed(tiny: MakeRecipe) -> None:
    recipe = tiny(run="imported")
    folder = Path(recipe.run_dir) / "checkpoints"
    checkpoint.save(folder, 2, {"model": {"w": torch.zeros(1)}}, {"layout": "flux"}).wait()
    with pytest.raises(UserError, match="imported weights and no state of a run: start from them"):
        Trainer(recipe)


def test_fresh_sets_the_run_aside_and_leaves_the_data(
    tiny: MakeRecipe,
    shapes_manifest: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "data").symlink_to(shapes_manifest.parent)
    recipe = tiny("train.steps=2")
    train(recipe)
    then = curve(run_dir)
    kept = {entry.name for entry in run_dir.iterdir()} - {"data", "run.lock"}

    Trainer(recipe, fresh=True).run(stop_after=1)
    assert curve(run_dir) == then[:1]
    assert checkpoint.steps(run_dir / "checkpoints") == [1]
    old = tmp_path / "run-old1"
    assert curve(old) == then
    assert {entry.name for entry in old.iterdir()} >= kept
    assert f"is now in {old}" in capsys.readouterr().out


def test_fresh_moves_nothing_when_it_cannot_begin(tiny: MakeRecipe, tmp_path: Path) -> None:
    run_dir = train(tiny("train.steps=1"))
    with pytest.raises(UserError, match="in_channels"):
        Trainer(tiny("model.in_channels=64"), fresh=True)
    assert curve(run_dir)
    assert not (tmp_path / "run-old1").exists()


def test_a_run_keeps_its_own_recipe(tiny: MakeRecipe) -> None:
    recipe = tiny("optim.drops={2: 1e-3}", "train.steps=1")
    run_dir = train(recipe)
    assert read_recipe(run_dir / "recipe.yaml", [], Recipe) == recipe


def test_a_step_reports_its_speed_and_where_time_went(tiny: MakeRecipe) -> None:
    record = read_metrics(train(tiny("train.steps=1")))[0]
    assert record["lr"] == 2.5e-3  # half way through a warm-up of two steps
    assert record["bucket"] in {"1x32x32", "9x32x32", "17x32x32"}
    phases = record["phases"]
    assert {"data", "encode", "forward", "backward", "optimizer"} <= phases.keys()
    assert sum(phases.values()) == pytest.approx(record["ms"])
    clips = 2 if record["bucket"].startswith("17") else 4
    assert record["videos_per_s"] == pytest.approx(clips / record["ms"] * 1000)
    tokens = {"1x32x32": 4, "9x32x32": 12, "17x32x32": 20}[record["bucket"]]
    assert record["tokens_per_s"] == pytest.approx(clips * tokens / record["ms"] * 1000)


def test_profile_of_chosen_steps(
    tiny: Callable[..., Recipe], recipe_file: Path, tmp_path: Path, vidgen_main: Any
) -> None:
    Trainer(tiny(run="plain")).run()
    words = ("train", recipe_file, f"run_dir={tmp_path / 'run'}", "--profile", "steps=2-3")
    assert vidgen_main(*words)[0] == 0
    with gzip.open(tmp_path / "run" / "profiles" / "trace-rank0.json.gz", "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"step 2", "step 3", "forward", "backward"} <= names
    assert not {"step 1", "step 4"} & names
    losses = [[r["loss"] for r in read_metrics(tmp_path / run)] for run in ("run", "plain")]
    assert losses[0] == losses[1]
    status, _, err = vidgen_main("train", recipe_file, "--profile", "2-3")
    assert status == 2
    assert "write steps=10-12" in err
