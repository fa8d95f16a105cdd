"""Every recipe: its model at full size without memory, its training shrunk to two CPU steps."""

import math
from pathlib import Path

import pytest
import torch

from vidgen.config import read_recipe
from vidgen.models.mmdit import MMDiT
from vidgen.models.mmdit.flops import parameters
from vidgen.train import Trainer
from vidgen.train.config import Recipe
from vidgen.train.metrics import read_metrics

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))

# What a laptop cannot hold is replaced by the embedded defaults; conditions, schedule, flow,
# recomputation and all else stay the recipe's own.
SHRUNK = (
    "autoencoder=!replace {kind: block_dct}",
    "text=!replace {length: 32, token_width: 16, pooled_width: 16}",
    "model.vec_in_dim=16",
    "model.context_in_dim=16",
    "data.buckets=!replace {'32px_ar1:1': {1: {batch: 4}, 9: {batch: 2}, 17: {batch: 2}}}",
    *("data.workers=1", "parallel.context=1", "train.init_from=null"),
    *("train.steps=2", "train.device=cpu", "checkpoint.every=1000"),
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_full_size_on_the_meta_device(path: Path) -> None:
    recipe = read_recipe(path, [], Recipe)
    with torch.device("meta"):
        model = MMDiT(recipe.model)
    count = sum(math.prod(p.shape) for p in model.parameters())
    assert count == parameters(recipe.model)
    if path.stem.startswith("stage"):
        assert 11.8e9 < count < 12e9


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_two_steps_shrunk(
    path: Path, shapes_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model = ("model=tiny", "model.in_channels=96")
    if not read_recipe(path, [], Recipe).model.cond_embed:
        tiny_model += ("model.cond_embed=false",)
    places = (f"data.manifest={shapes_manifest}", f"run_dir={tmp_path / 'run'}")
    recipe = read_recipe(path, [*tiny_model, *SHRUNK, *places], Recipe)
    assert Trainer(recipe).run() == 2
    records = read_metrics(tmp_path / "run")
    assert [record["step"] for record in records] == [1, 2]
    assert all(0.5 < record["loss"] < 5 for record in records)
