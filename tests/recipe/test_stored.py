"""What a checkpoint keeps of its recipe is enough to sample, whichever version wrote it."""

from typing import Any

import pytest

from vidgen.config import to_dict
from vidgen.errors import UserError
from vidgen.recipe import Recipe, for_sampling, read_any, read_recipe

MODEL = {
    "in_channels": 96,
    "hidden_size": 32,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [4, 6, 6],
    "vec_in_dim": 16,
    "context_in_dim": 16,
}
STORED: dict[str, Any] = {
    "name": "old",
    "run_dir": "runs/old",
    "model": MODEL,
    "autoencoder": {"kind": "block_dct"},
    "text": {"length": 12, "token_width": 16, "pooled_width": 16},
    "data": {"manifest": "clips.parquet", "buckets": {"32px_ar1:1": {"1": {"batch": 1}}}},
    "optim": {"lr": 1e-4},
    "sample": {"steps": 7},
}


def test_training_options_of_another_version_are_ignored() -> None:
    stored = {**STORED, "optim": {"momentum": 0.9}, "prodigy": True}
    with pytest.raises(UserError, match="unknown key"):
        read_recipe(stored)
    recipe = for_sampling(stored)
    assert isinstance(recipe, Recipe)
    assert (recipe.name, recipe.run_dir, recipe.sample.steps) == ("old", "runs/old", 7)
    assert recipe.optim == Recipe.__dataclass_fields__["optim"].default


def test_what_sampling_reads_is_still_checked() -> None:
    with pytest.raises(UserError, match=r"unknown key 'model\.heads'"):
        for_sampling({**STORED, "model": {**MODEL, "heads": 2}})
    with pytest.raises(UserError, match="text is missing"):
        for_sampling({key: value for key, value in STORED.items() if key != "text"})


def test_parts_to_sample_with_need_no_run() -> None:
    recipe = for_sampling({key: value for key, value in STORED.items() if key != "run_dir"})
    assert recipe.run_dir == "runs/old"


def test_a_stored_recipe_of_either_kind_is_read_as_what_it_is() -> None:
    recipe = read_any(STORED)
    assert read_any(to_dict(recipe)) == recipe
    named = {"kind": "autoencoder", "name": "a", "run_dir": "runs/a", "autoencoder": "tiny"}
    published = read_any({**named, "data": STORED["data"]})
    assert not isinstance(published, Recipe)
    assert read_any(to_dict(published)) == published
