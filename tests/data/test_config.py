import pytest
import yaml
from pydantic import ValidationError

from vidgen.data import DataConfig


def test_the_form_of_the_recipes() -> None:
    text = "manifest: a.parquet\nbuckets: {256px: {1: {batch: 45}, 5-33: {batch: 12, keep: 0.5}}}"
    cfg = DataConfig(**yaml.safe_load(text))
    assert list(cfg.buckets["256px"]) == ["1", "5-33"]
    assert cfg.buckets["256px"]["1"].batch == 45
    assert cfg.buckets["256px"]["5-33"].keep == 0.5


@pytest.mark.parametrize(
    "change",
    [
        {"buckets": {"256px": {1: {"batch": 0}}}},
        {"buckets": {"256px": {1: {"batch": 1, "keep": 1.5}}}},
        {"buckets": {"256px": {1: {"batches": 1}}}},
        {"buckets": {"256px": 3}},
        {"workers": -1},
        {"prefetch": 0},
        {"crop": "left"},
    ],
)
def test_impossible_values_are_refused(change: dict[str, object]) -> None:
    good: dict[str, object] = {"manifest": "a", "buckets": {"256px": {1: {"batch": 1}}}}
    DataConfig(**good)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        DataConfig(**(good | change))  # type: ignore[arg-type]
