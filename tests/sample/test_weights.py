"""The name of weights: the same in every layout and precision, another after training."""

from pathlib import Path

import torch

from vidgen.models.mmdit import MMDiT, load_weights, save_weights
from vidgen.sample import Pipeline
from vidgen.sample.weights import fingerprint


def test_layout_and_precision_do_not_matter(pipeline: Pipeline, tmp_path: Path) -> None:
    name = pipeline.weights_hash
    assert len(name) == 16
    for layout in ("open-sora", "flux", "vidgen"):
        path = tmp_path / f"{layout}.safetensors"
        save_weights(pipeline.model, path, layout)
        model = MMDiT(pipeline.recipe.model).to(torch.bfloat16)
        load_weights(model, path)
        assert fingerprint(model) == name


def test_training_changes_it(pipeline: Pipeline) -> None:
    before = fingerprint(pipeline.model)
    with torch.no_grad():
        pipeline.model.final_layer.linear.weight.mul_(1.01)
    assert fingerprint(pipeline.model) != before
