"""The recipes and the code are held to what the report states, typed from the report itself."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from vidgen.config import to_dict
from vidgen.recipe import read_any

ROOT = Path(__file__).resolve().parents[2]


def _tool() -> Any:
    spec = importlib.util.spec_from_file_location("report_page", ROOT / "tools" / "report_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = _tool()
ROWS = TOOL.read()
VERDICTS = {"same", "named", "different", "not measured", "not built"}
VALUES = [
    pytest.param(recipe, key, value, id=f"{recipe}-{key}-{number}")
    for number, row in enumerate(ROWS)
    for recipe, values in row.get("values", {}).items()
    for key, value in values.items()
]


def value_of(recipe: Any, key: str) -> Any:
    """Of a recipe read and written as plain values; keys may themselves hold dots or digits."""
    found = to_dict(recipe)
    for part in key.split("."):
        found = found[part] if part in found else found[int(part)]
    return found


@pytest.mark.parametrize(("recipe", "key", "stated"), VALUES)
def test_the_recipe_has_the_reports_value(recipe: str, key: str, stated: Any) -> None:
    found = value_of(read_any(recipe, []), key)
    if isinstance(stated, dict):
        assert {str(k): v for k, v in found.items()} == {str(k): v for k, v in stated.items()}
    else:
        assert found == stated


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['section']}: {row['statement'][:40]}")
def test_code_and_tests_that_a_row_names_exist(row: dict[str, Any]) -> None:
    assert row["verdict"] in VERDICTS
    assert row["verdict"] == "same" or row.get("why"), "say why"
    for place in (*row["code"], *row["test"]):
        path, _, name = place.partition(":")
        assert (ROOT / path).is_file(), f"there is no {path}"
        if name := name.lstrip(":"):
            assert name in (ROOT / path).read_text("utf-8"), f"{path} has no {name}"


def test_the_page_is_made_from_the_rows() -> None:
    made = TOOL.PAGE.read_text(encoding="utf-8")
    assert made == TOOL.page(ROWS), "type: python tools/report_page.py"
