"""A recipe's workload counts the tokens that training counts."""

from dataclasses import replace
from typing import Any

import pytest

from vidgen.data.config import BucketConfig
from vidgen.data.index.buckets import BucketTable
from vidgen.models.block_dct.config import BlockDCTConfig
from vidgen.models.flux_ae.config import FluxAEConfig
from vidgen.models.geometry import Geometry
from vidgen.models.video_dcae.config import VideoDCAEConfig
from vidgen.plan.workload import workload_of
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe


@pytest.mark.parametrize(
    ("autoencoder", "grid"),
    [
        (BlockDCTConfig(), (9, 16, 16)),
        # Every frame is an image of its own: the time axis is not compressed.
        (FluxAEConfig(path="ae.safetensors"), (33, 16, 16)),
        # Not causal: the 33rd frame begins no latent frame.
        (VideoDCAEConfig(), (8, 4, 4)),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_the_grid_is_that_of_the_autoencoder(autoencoder: Any, grid: tuple[int, int, int]) -> None:
    recipe = read_recipe("recipes/stage1.yaml", [], Recipe)
    buckets = {"256px": {"33": BucketConfig(batch=1)}}
    recipe = replace(recipe, autoencoder=autoencoder, data=replace(recipe.data, buckets=buckets))
    workload = workload_of(recipe)
    (bucket,) = workload.buckets
    assert workload.grid(bucket) == grid


def test_the_planner_counts_as_the_loader_does() -> None:
    recipe = read_recipe("recipes/stage1.yaml", [], Recipe)
    workload = workload_of(recipe)
    geometry = Geometry.of(recipe.autoencoder, recipe.model.patch_size)
    table = BucketTable(recipe.data, geometry)
    squares = {
        (bucket.resolution, bucket.frames): table.tokens(bucket)
        for bucket in table.buckets
        if bucket.height == bucket.width
    }
    for bucket in workload.buckets:
        t, h, w = workload.grid(bucket)
        assert squares[bucket.resolution, bucket.frames] == t * h * w
