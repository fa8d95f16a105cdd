"""Recipes by name: from any folder, in a wheel's layout and in a checkout's."""

from pathlib import Path

import pytest

import vidgen
from vidgen.errors import UserError
from vidgen.recipe import library, read_any, read_recipe

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_recipe_is_read_by_its_name_from_any_folder() -> None:
    assert library.names() == NAMES
    for name in NAMES:
        assert read_any(name).name == name
        assert read_any(name) == read_any(ROOT / "recipes" / f"{name}.yaml")


def test_an_installed_package_brings_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "vidgen"
    (package / "recipes").mkdir(parents=True)
    (package / "recipes" / "quickstart.yaml").write_text("base: other\nname: installed\n")
    (package / "recipes" / "other.yaml").write_text(
        (ROOT / "recipes" / "quickstart.yaml").read_text()
    )
    monkeypatch.setattr(vidgen, "__file__", str(package / "__init__.py"))
    assert library.names() == ["other", "quickstart"]
    assert read_recipe("quickstart").name == "installed"


def test_a_file_wins_over_a_name() -> None:
    Path("stage1").write_text("base: stage2\nname: mine\n")
    assert read_recipe("stage1").name == "mine"
    Path("stage3").mkdir()  # a folder is no recipe
    assert read_recipe("stage3").name == "stage3"


def test_base_takes_a_neighbour_before_a_name(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    mine = tmp_path / "recipes" / "mine.yaml"
    mine.write_text("base: [stage2, near.yaml]\nrun_dir: runs/mine\n")
    (tmp_path / "recipes" / "near.yaml").write_text("name: near\n")
    recipe = read_recipe("recipes/mine.yaml")
    assert (recipe.name, recipe.run_dir) == ("near", "runs/mine")
    assert recipe.model == read_recipe("stage2").model
    assert read_any("recipes/mine.yaml") == recipe


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_the_same_recipe_wherever_it_lies(name: str, tmp_path: Path) -> None:
    library.copy(name, tmp_path / "mine.yaml")
    assert read_any("mine.yaml") == read_any(name)
    with pytest.raises(UserError, match=r"mine\.yaml exists; name another file"):
        library.copy(name, "mine.yaml")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("stag1", r"there is no recipe 'stag1' \(did you mean 'stage1'\?\)"),
        ("recipes/stage1.yaml", r"\(did you mean 'stage1', which comes with vidgen\?\)"),
        ("none/such.yaml", "there is no recipe 'none/such.yaml'; give the path of a YAML file"),
        ("mein.yaml", r"\(did you mean 'mine.yaml'\?\)"),
    ],
)
def test_a_recipe_that_is_not_there(wrong: str, message: str) -> None:
    Path("mine.yaml").write_text("base: stage1\n")
    with pytest.raises(UserError, match=message):
        read_recipe(wrong)


def test_copying_needs_a_name_and_a_folder() -> None:
    with pytest.raises(UserError, match=r"no recipe named 'stage9'; there is dcae, "):
        library.copy("stage9", "mine.yaml")
    with pytest.raises(UserError, match=r"no/mine\.yaml: cannot be written: No such file"):
        library.copy("stage1", "no/mine.yaml")
