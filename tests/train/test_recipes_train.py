"""Every recipe: its model at full size without memory, its training shrunk to two CPU steps."""

import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vidgen.data import open_loader
from vidgen.models.build import build_autoencoder
from vidgen.models.mmdit import MMDiT
from vidgen.models.mmdit.flops import parameters
from vidgen.recipe.reader import peek, read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.train import Trainer
from vidgen.train.optim.optimizer import learning_rate
from vidgen.train.report.metrics import read_metrics

RECIPES = [
    path
    for path in sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
    if peek(path, "kind") is None  # those of generators; the autoencoder's has tests of its own
]

# What a laptop cannot hold is replaced by the embedded defaults; conditions, schedule, flow,
# recomputation and all else stay the recipe's own.
SHRUNK = (
    "autoencoder=!replace {kind: block_dct}",
    "text=!replace {length: 32, token_width: 16, pooled_width: 16}",
    "model.vec_in_dim=16",
    "model.context_in_dim=16",
    "data.buckets=!replace {'32px_ar1:1': {1: {batch: 4}, 9: {batch: 2}, 17: {batch: 2}}}",
    *("data.workers=1", "parallel.context=1", "train.init_from=null", "train.reinitialise=[]"),
    *("train.steps=2", "train.device=cpu", "checkpoint.every=1000"),
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_full_size_on_the_meta_device(path: Path) -> None:
    recipe = read_recipe(path, [], Recipe)
    with torch.device("meta"):
        model = MMDiT(recipe.model)
    count = sum(math.prod(p.shape) for p in model.parameters())
    assert count == parameters(recipe.model)
    if path.stem.startswith(("stage", "dcae_adapt")):
        assert 11.8e9 < count < 12e9


def test_stage_3_shrunk_on_the_four_ranks_it_gives_a_sample(
    start_ranks: Callable[..., list["subprocess.Popen[str]"]],
    shapes_manifest: Path,
    tmp_path: Path,
) -> None:
    path = next(path for path in RECIPES if path.stem == "stage3")
    shrunk = [option for option in SHRUNK if not option.startswith("parallel.")]
    places = (f"data.manifest={shapes_manifest}", f"run_dir={tmp_path / 'run'}")
    model = ("model=tiny", "model.in_channels=96")
    children = start_ranks(4, "train", path, *model, *shrunk, *places)
    shown = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [0] * 4, "\n".join(shown)
    records = read_metrics(tmp_path / "run")
    assert [record["step"] for record in records] == [1, 2]

    # One process has the same first loss: what four ranks share is one sample.
    alone = read_recipe(
        path,
        [*model, *SHRUNK, places[0], f"run_dir={tmp_path / 'one'}", "train.steps=1"],
        Recipe,
    )
    Trainer(alone).run()
    assert records[0]["loss"] == pytest.approx(read_metrics(tmp_path / "one")[0]["loss"], rel=1e-4)


def first_batch_power(recipe: Recipe) -> float:
    """Mean square of the latents that training begins with."""
    codec = build_autoencoder(recipe.autoencoder, torch.device("cpu"), torch.float32)
    with open_loader(recipe.data, seed=recipe.seed, rank=0, world=1, device="cpu") as loader:
        video_BTHWC = next(loader).video_BTHWC
    clean = codec.encode(video_BTHWC.float().permute(0, 4, 1, 2, 3) / 127.5 - 1)
    return float(clean.square().mean())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_two_steps_shrunk(
    path: Path, shapes_manifest: Path, dinov2_folder: Path, tmp_path: Path
) -> None:
    tiny_model = ("model=tiny", "model.in_channels=96")
    full = read_recipe(path, [], Recipe)
    if not full.model.cond_embed:
        tiny_model += ("model.cond_embed=false",)
    if full.alignment.weight:
        tiny_model += (f"alignment.path={dinov2_folder}", "alignment.hidden=24")
    places = (f"data.manifest={shapes_manifest}", f"run_dir={tmp_path / 'run'}")
    recipe = read_recipe(path, [*tiny_model, *SHRUNK, *places], Recipe)
    trainer = Trainer(recipe)
    for parameter in trainer.model.final_layer.linear.parameters():
        torch.nn.init.zeros_(parameter)
    assert trainer.run() == 2
    records = read_metrics(tmp_path / "run")
    assert [record["step"] for record in records] == [1, 2]
    # A model that predicts 0 misses noise - clean: 1 + E[clean^2], each bucket's own. Over 1,500
    # elements and more the sampled noise is within a few percent of that.
    assert records[0]["loss"] == pytest.approx(1 + first_batch_power(recipe), rel=0.12)
    rates = [learning_rate(recipe.optim, step, steps=2) for step in (0, 1)]
    assert [record["lr"] for record in records] == pytest.approx(rates)
    assert trainer.model.final_layer.linear.weight.abs().max() > 0  # it has learnt something
    assert all(("alignment" in record) == (full.alignment.weight > 0) for record in records)
