"""Recipes: everything that decides a run, as one checked tree read from YAML."""

from vidgen.recipe.autoencoder import AutoencoderRecipe, read_any
from vidgen.recipe.explain import explain
from vidgen.recipe.reader import diff, dump_yaml, read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.recipe.stored import for_sampling

__all__ = [
    "AutoencoderRecipe",
    "Recipe",
    "diff",
    "dump_yaml",
    "explain",
    "for_sampling",
    "read_any",
    "read_recipe",
]
