"""Weights out of a training checkpoint: loaded, and converted to a published layout."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vidgen.errors import UserError
from vidgen.models.mmdit import PRESETS, MMDiT, load_weights, save_weights
from vidgen.models.mmdit.convert import convert, describe
from vidgen.runtime import checkpoint

# Axes that no shape could tell: they come from the recipe saved with the step.
CONFIG = replace(PRESETS["tiny"], axes_dim=(16, 8, 8))


def saved(root: Path, model: MMDiT, averaged: MMDiT) -> Path:
    groups = {"model": dict(model.state_dict()), "ema": dict(averaged.state_dict())}
    recipe = json.loads(json.dumps({"model": asdict(CONFIG)}))
    checkpoint.save(root, 7, groups, {"recipe": recipe}, background=False).wait()
    step = checkpoint.latest(root)
    assert step is not None
    return step


def test_a_training_step_is_a_source_like_any_other(tmp_path: Path) -> None:
    model, averaged = MMDiT(CONFIG), MMDiT(CONFIG)
    step = saved(tmp_path / "checkpoints", model, averaged)
    assert describe(step) == ("vidgen", CONFIG)
    for group, source in (("model", model), ("ema", averaged)):
        save_weights(source, tmp_path / f"direct-{group}.safetensors", "open-sora")
        convert(step, tmp_path / f"{group}.safetensors", to="open-sora", group=group)
        expected = load_file(tmp_path / f"direct-{group}.safetensors")
        found = load_file(tmp_path / f"{group}.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    loaded = MMDiT(CONFIG)
    load_weights(loaded, step)
    assert torch.equal(loaded.img_in.weight, model.img_in.weight)
    with pytest.raises(UserError, match="axes_dim"):
        load_weights(MMDiT(PRESETS["tiny"]), step)
    with pytest.raises(UserError, match="holds no 'average'; it holds ema, model"):
        convert(step, tmp_path / "x.safetensors", to="flux", group="average")
