"""Sources of a recipe's values, read from the comments beside them."""

from pathlib import Path

import pytest

from vidgen.recipe import explain, library, read_recipe
from vidgen.recipe.reader import Recipe

STAGES = ("stage1", "stage2", "stage3", "opensora_v2", "opensora_v2_dcae", "dcae_adapt",
          "dcae_adapt_long", "dcae")  # fmt: skip


@pytest.fixture
def recipe(recipe_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"""\
base: {recipe_file}
seed: 7 # [ours]
optim:
  lr: 1e-4 # [4.2] it is the report's, "decayed" later
  betas: [0.9, 0.99]
data:
  buckets:
    32px_ar1:1:
      9: {{batch: 2, keep: 0.5}} # [Table 5] keep: [public code]
name: 'a #1 # [no tag]' # [ours] a name
"""
    )
    return path


def test_tags_and_notes(recipe: Path) -> None:
    found = {row.key: row for row in explain(recipe, ["train.steps=2"])}
    lr = found["optim.lr"]
    assert (lr.value, lr.source) == (1e-4, "4.2")
    assert lr.note == 'it is the report\'s, "decayed" later'
    assert lr.where == f"{recipe}, line 4"
    assert found["seed"].source == "ours"
    assert found["optim.betas"].source == ""
    batch, keep = (found[f"data.buckets.32px_ar1:1.9.{name}"] for name in ("batch", "keep"))
    assert (batch.source, keep.source) == ("Table 5", "public code")
    assert (found["name"].value, found["name"].source) == ("a #1 # [no tag]", "ours")
    assert (found["train.steps"].value, found["train.steps"].source) == (2, "command line")
    assert found["optim.warmup"].where.startswith("/")  # the base's file


@pytest.mark.parametrize("name", STAGES)
def test_every_setting_of_the_reports_recipes_has_a_source(name: str) -> None:
    """Names, paths and what only selects files or devices need none."""
    free = ("name", "kind", "run_dir", "base")
    paths = ("path", "manifest", "init_from", "weights", "lpips_weights", "reinitialise")
    for row in explain(name):
        last = row.key.split(".")[-1]
        if row.key in free or last.endswith(paths):
            continue
        assert row.source, f"{row.where}: {row.key} has no [source] beside it"


def test_what_is_stated_is_what_is_read() -> None:
    stated = {row.key: row.value for row in explain(library.find("stage3"))}
    recipe = read_recipe("stage3", [], Recipe)
    assert stated["optim.lr"] == recipe.optim.lr
    assert stated["train.steps"] == recipe.train.steps
    assert stated["data.buckets.768px.101-129.batch"] == 2
