"""A trained generator goes over to the Video DC-AE's latents: recipes/dcae_adapt.yaml, shrunk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from vidgen.config import to_dict
from vidgen.data.synthetic.shapes import TRAINED, write_dataset
from vidgen.models.mmdit import PRESETS, MMDiT, load_weights, save_weights
from vidgen.models.video_dcae import VideoDCAE
from vidgen.models.video_dcae.weights import save_weights as save_autoencoder
from vidgen.recipe.autoencoder import PRESETS as AUTOENCODERS
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.train import Trainer
from vidgen.train.report.metrics import read_metrics

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "dcae_adapt.yaml"
# What it was trained with: 16 channels in patches of 2 x 2.
BEFORE = replace(PRESETS["tiny"], vec_in_dim=16, context_in_dim=16)
NEW = ("img_in.", "cond_in.", "final_layer.")


def override(name: str, value: object) -> str:
    return f"{name}=!replace {json.dumps(value)}"


@pytest.fixture
def recipe(tmp_path: Path, dinov2_folder: Path) -> Recipe:
    clips = ((1, 1), (9, 1), (17, 1))
    manifest = write_dataset(tmp_path, scenes=TRAINED[:4], clips=clips, side=64, seed=1)
    small = replace(AUTOENCODERS["tiny"], tile_frames=8, tile_size=32)
    autoencoder = VideoDCAE(small)
    autoencoder.init_weights(torch.Generator().manual_seed(0))
    save_autoencoder(autoencoder, tmp_path / "ae.safetensors")
    generator = MMDiT(BEFORE)
    for parameter in generator.parameters():
        nn.init.normal_(parameter, std=0.05)
    save_weights(generator, tmp_path / "generator.safetensors", "open-sora")
    buckets = {"64px_ar1:1": {"1": {"batch": 2}, "8": {"batch": 2}, "16": {"batch": 2}}}
    return read_recipe(
        RECIPE,
        [
            override("autoencoder", {**to_dict(small), "path": str(tmp_path / "ae.safetensors")}),
            override("data.buckets", buckets),
            override("text", {"length": 8, "token_width": 16, "pooled_width": 16}),
            *("model=tiny", "model.in_channels=64", "model.patch_size=1"),
            *("model.vec_in_dim=16", "model.context_in_dim=16"),
            f"train.init_from={tmp_path / 'generator.safetensors'}",
            f"alignment.path={dinov2_folder}",
            *("alignment.hidden=24", "data.workers=0", f"data.manifest={manifest}"),
            *(
                "train.steps=4",
                "train.device=cpu",
                "train.dtype=float32",
                f"run_dir={tmp_path / 'run'}",
            ),
        ],
        Recipe,
    )


def test_new_ends_learn_and_the_rest_goes_on_from_what_it_was(
    recipe: Recipe, tmp_path: Path
) -> None:
    before = MMDiT(BEFORE)
    load_weights(before, tmp_path / "generator.safetensors")
    kept = before.state_dict()
    trainer = Trainer(recipe)
    start = {name: p.detach().clone() for name, p in trainer.named.items()}
    for name, tensor in start.items():
        if not name.startswith(NEW):
            assert torch.equal(tensor, kept[name]), name
    assert start["img_in.weight"].shape == (64, 64)
    assert not start["final_layer.linear.weight"].any()

    assert trainer.run() == 4
    records = read_metrics(tmp_path / "run")
    assert {record["bucket"] for record in records} <= {"1x64x64", "8x64x64", "16x64x64"}
    assert all(-1 <= record["alignment"] <= 1 for record in records)
    for name in ("img_in.weight", "final_layer.linear.weight"):
        assert not torch.equal(trainer.named[name], start[name])
