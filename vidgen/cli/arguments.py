"""Arguments that several commands share."""

import argparse


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="changes to the recipe: optim.lr=3e-5"
    )


def count(text: str) -> int:
    """A whole number from 1 up: the `type` of an argument."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
