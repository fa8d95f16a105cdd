"""Recipes as checkpoints keep them: plain mappings, possibly written by an older version."""

from collections.abc import Mapping
from typing import Any

from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe

# The parts of a recipe that sampling reads; data because its buckets say which sizes are trained.
SAMPLED = (
    "name",
    "run_dir",
    "model",
    "autoencoder",
    "text",
    "data",
    "flow",
    "conditions",
    "sample",
)


def for_sampling(stored: Mapping[str, Any]) -> Recipe:
    """The parts that sampling reads; the parts about training are left at their defaults.

    They are ignored so that weights stay usable when training options are renamed or removed.
    """
    parts = {key: stored[key] for key in SAMPLED if key in stored}
    return read_recipe({"run_dir": f"runs/{parts.get('name')}", **parts})
