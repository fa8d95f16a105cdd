"""Arguments that several commands share."""

import argparse
from typing import TYPE_CHECKING

from vidgen.errors import UserError

if TYPE_CHECKING:
    from vidgen.recipe.schema import Recipe


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a YAML file or a name: `vidgen recipe list`"
    )
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="changes to the recipe: optim.lr=3e-5"
    )


def read_transformer(path: str, overrides: list[str]) -> "Recipe":
    """A recipe of the video model, for commands that know no autoencoder's."""
    from vidgen.recipe.autoencoder import read_any
    from vidgen.recipe.schema import Recipe

    recipe = read_any(path, overrides)
    if not isinstance(recipe, Recipe):
        raise UserError(
            f"{path} trains an autoencoder; this command is for a transformer's recipe, such as "
            "stage1"
        )
    return recipe


def count(text: str) -> int:
    """A whole number from 1 up: the `type` of an argument."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
