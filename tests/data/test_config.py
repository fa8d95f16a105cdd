import pytest
import yaml
from pydantic import ValidationError

from vidgen.data import DataConfig
from vidgen.data.config import LatentsConfig


def test_the_form_of_the_recipes() -> None:
    text = "manifest: a.parquet\nbuckets: {256px: {1: {batch: 45}, 5-33: {batch: 12, keep: 0.5}}}"
    cfg = DataConfig(**yaml.safe_load(text))
    assert list(cfg.buckets["256px"]) == ["1", "5-33"]
    assert cfg.buckets["256px"]["1"].batch == 45
    assert cfg.buckets["256px"]["5-33"].keep == 0.5


def test_latents_are_a_folder_or_more() -> None:
    bucket = {"256px": {1: {"batch": 1}}}
    plain = DataConfig(manifest="a", buckets=bucket, latents="kept")  # type: ignore[arg-type]
    assert plain.latents == LatentsConfig(folder="kept", ahead=0, rolling_gb=None)
    assert DataConfig(manifest="a", buckets=bucket).latents is None  # type: ignore[arg-type]


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
        {"latents": 3},
        {"latents": {"rolling_gb": 4}},
        {"latents": {"folder": "a", "rolling_gb": 0}},
        {"latents": {"folder": "a", "ahead": -1}},
    ],
)
def test_impossible_values_are_refused(change: dict[str, object]) -> None:
    good: dict[str, object] = {"manifest": "a", "buckets": {"256px": {1: {"batch": 1}}}}
    DataConfig(**good)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        DataConfig(**(good | change))  # type: ignore[arg-type]
