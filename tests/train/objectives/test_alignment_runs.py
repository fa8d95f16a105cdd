"""Runs that align a layer with DINOv2: resuming, ranks, going on in another run, refusals."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vidgen.errors import UserError
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.runtime import checkpoint
from vidgen.train import Trainer
from vidgen.train.report.metrics import read_metrics

pytest.importorskip("transformers", reason="the text extra is not installed")

MakeRecipe = Callable[..., Recipe]


def options(dinov2: Path) -> tuple[str, ...]:
    return (
        f"alignment={{weight: 0.5, path: {dinov2}, layer: 1, hidden: 24}}",
        "train.steps=4",
        "checkpoint.every=2",
    )


@pytest.fixture(scope="module")
def straight(
    recipe_file: Path, dinov2_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Four steps without a break."""
    torch.set_num_threads(1)
    run_dir = tmp_path_factory.mktemp("runs") / "straight"
    own = (f"run_dir={run_dir}", *options(dinov2_folder))
    Trainer(read_recipe(recipe_file, list(own), Recipe)).run()
    return run_dir


def curve(run_dir: Path) -> list[tuple[float, float, float]]:
    return [(r["loss"], r["alignment"], r["grad_norm"]) for r in read_metrics(run_dir)]


def state(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    path = run_dir / "checkpoints" / f"step-{step:09d}"
    assert checkpoint.verify(path) == []
    return {
        f"{group}/{name}": tensor
        for group in checkpoint.groups(path)
        for name, tensor in checkpoint.read_tensors(path, group).items()
    }


def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(
    tiny: MakeRecipe, straight: Path, dinov2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny(*options(dinov2_folder), run="resumed")
    Trainer(recipe).run(stop_after=2)
    assert Trainer(recipe).run() == 4
    run_dir = Path(recipe.run_dir)
    assert curve(run_dir) == curve(straight)
    found, expected, earlier = state(run_dir, 4), state(straight, 4), state(straight, 2)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    mine = {name for name in found if name.startswith("alignment/")}
    assert len(mine) == 6
    assert f"alignment_optim/{min(mine).partition('/')[2]}.exp_avg" in found
    assert not any(torch.equal(earlier[name], found[name]) for name in mine)  # it is trained
    assert "minus the cosine of layer 1 to the 16 features" in capsys.readouterr().out


def test_the_layer_comes_closer_to_the_features(straight: Path) -> None:
    records = read_metrics(straight)
    assert records[-1]["alignment"] > records[0]["alignment"]
    assert "alignment" in records[0]["phases"]


@pytest.mark.parametrize(
    "again", [("recompute.dual=1",), ("recompute.dual=1", "recompute.single=1")]
)
def test_recomputing_changes_no_bit(
    tiny: MakeRecipe, straight: Path, dinov2_folder: Path, again: tuple[str, ...]
) -> None:
    recipe = tiny(*options(dinov2_folder), *again, run="recomputed")
    Trainer(recipe).run(stop_after=2)
    assert curve(Path(recipe.run_dir)) == curve(straight)[:2]


HALF = "data.buckets=!replace {'32px_ar1:1': {1: {batch: 2}, 9: {batch: 2}, 17: {batch: 1}}}"


@pytest.mark.parametrize("arrangement", [(HALF, "parallel.zero=3"), ("parallel.context=2",)])
def test_two_ranks_train_as_one(
    arrangement: tuple[str, ...],
    start_ranks: Callable[..., list["subprocess.Popen[str]"]],
    straight: Path,
    dinov2_folder: Path,
    recipe_file: Path,
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "two"
    own = (f"run_dir={run_dir}", *options(dinov2_folder), *arrangement)
    children = start_ranks(2, "train", recipe_file, *own)
    shown = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], "\n".join(shown)
    for found, expected in zip(curve(run_dir), curve(straight), strict=True):
        assert found == pytest.approx(expected, rel=1e-3)
    step = run_dir / "checkpoints" / "step-000000004"
    assert len(list(step.glob("alignment-*"))) == 2  # sharded
    for name, tensor in checkpoint.read_tensors(step, "alignment").items():
        expected_tensor = state(straight, 4)[f"alignment/{name}"]
        assert (tensor - expected_tensor).abs().max() < 5e-3  # one AdamW step of lr


def test_another_run_goes_on_with_the_projection(
    tiny: MakeRecipe, straight: Path, dinov2_folder: Path
) -> None:
    trained = state(straight, 4)
    first = f"train.init_from={straight}"
    trainer = Trainer(tiny(*options(dinov2_folder), first, run="next"))
    assert trainer.alignment is not None
    for name, parameter in trainer.alignment.projection.named_parameters():
        assert torch.equal(parameter, trained[f"alignment/{name}"])
    assert all(torch.equal(p, trained[f"model/{name}"]) for name, p in trainer.named.items())
    # Without alignment a run starts from the same weights, which are the generator's alone.
    plain = Trainer(tiny(first, "train.steps=1", run="plain"))
    assert plain.run() == 1
    assert "alignment" not in read_metrics(Path(plain.recipe.run_dir))[0]


def test_a_resumed_run_keeps_its_alignment(tiny: MakeRecipe, dinov2_folder: Path) -> None:
    Trainer(tiny("train.steps=1")).run()
    with pytest.raises(UserError, match=r"another alignment \(alignment\.weight: 0"):
        Trainer(tiny(*options(dinov2_folder)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("alignment.weight=0.5", "alignment: weight is 0.5 and path is not set"),
        ("alignment={weight: 1, path: x, layer: 3}", "layer is 3: the model has 2 blocks"),
        ("alignment={weight: 1, path: x, layer: 0}", "greater than 0"),
    ],
)
def test_what_cannot_be_aligned_is_refused(tiny: MakeRecipe, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(override)


def test_frames_and_weights_must_be_there(tiny: MakeRecipe, tmp_path: Path) -> None:
    asked = "alignment={weight: 1, path: /nowhere/dinov2, layer: 1}"
    with pytest.raises(UserError, match=r"data\.latents does not hold: set data\.latents=null"):
        tiny(asked, f"data.latents={tmp_path}")
    with pytest.raises(UserError, match="/nowhere/dinov2: no such folder"):
        Trainer(tiny(asked))
