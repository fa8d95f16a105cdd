from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_show_prints_every_value_and_reads_back(vidgen: Any, recipe: Path, tmp_path: Path) -> None:
    status, shown, _ = vidgen("recipe", "show", recipe, "optim.lr=3e-5", "model.depth=2")
    assert status == 0
    values = yaml.safe_load(shown)
    assert values["model"]["depth"] == 2
    assert values["optim"]["eps"] == 1e-15
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert vidgen("recipe", "diff", recipe, again) == (
        0,
        "model.depth: 1 -> 2\noptim.lr: 5e-05 -> 3e-05\n",
        "",
    )


def test_validate_says_all_that_is_wrong_in_all_files(
    vidgen: Any, recipe: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("base: small.yaml\noptim: {lrr: 1}\n")
    second.write_text("base: small.yaml\ntrain: {steps: 0}\n")
    status, out, err = vidgen("recipe", "validate", first, recipe, second)
    assert status == 2
    assert out == f"{recipe}: valid\n"
    assert "unknown key 'optim.lrr' (did you mean 'optim.lr'?)" in err
    assert "train.steps is 0: must be greater than 0" in err


def test_diff_of_equal_recipes(vidgen: Any, recipe: Path) -> None:
    assert vidgen("recipe", "diff", recipe, recipe)[1] == "the recipes are equal\n"


def test_wrong_number_of_files(vidgen: Any, recipe: Path) -> None:
    status, _, err = vidgen("recipe", "diff", recipe)
    assert status == 2
    assert "recipe diff takes 2 files, found 1" in err


def test_a_recipe_is_refused_before_anything_is_built(vidgen: Any, recipe: Path) -> None:
    status, _, err = vidgen("train", recipe, "model=tiny", "model.num_heads=5")
    assert status == 2
    assert "hidden_size 64 does not divide into num_heads 5" in err
    assert not (recipe.parent / "run").exists()


def test_list_names_the_recipes_and_says_what_each_is(vidgen: Any) -> None:
    status, shown, _ = vidgen("recipe", "list")
    assert status == 0
    (stage1,) = (line for line in shown.splitlines() if line.split()[0] == "stage1")
    assert "Stage 1 of the Open-Sora 2.0 report" in stage1
    assert shown.count("\n") == len(list((ROOT / "recipes").glob("*.yaml")))


def test_copy_writes_a_file_to_change(vidgen: Any, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    assert vidgen("recipe", "copy", "stage2", mine) == (0, f"stage2 -> {mine}\n", "")
    assert mine.read_bytes() == (ROOT / "recipes" / "stage2.yaml").read_bytes()
    assert vidgen("recipe", "diff", "stage2", mine)[1] == "the recipes are equal\n"
    status, _, err = vidgen("recipe", "copy", "stage2", mine, "optim.lr=1")
    assert status == 2
    assert "recipe copy takes no key=value, found 'optim.lr=1'" in err
