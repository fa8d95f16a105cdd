"""Recipes stored in checkpoints: plain mappings, possibly written by an older version."""

from collections.abc import Mapping
from typing import Any

from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe

# The sections that sampling reads; `data` because its buckets define the trained sizes.
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
    """The sections that sampling reads; training sections have their defaults.

    They are ignored so that weights stay usable when training options are renamed or removed.
    """
    parts = {key: stored[key] for key in SAMPLED if key in stored}
    return read_recipe({"run_dir": f"runs/{parts.get('name')}", **parts})
