"""`vidgen recipe`: look at recipes without running them."""

import argparse

from vidgen.errors import UserError
from vidgen.recipe.reader import diff, dump_yaml

EXAMPLE = """\
  vidgen recipe show recipes/stage1.yaml model=tiny
  vidgen recipe validate recipes/*.yaml
  vidgen recipe diff recipes/stage1.yaml recipes/stage2.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("show", "validate", "diff"),
        help="show: every value, defaults included; validate: check; diff: what differs",
    )
    parser.add_argument("recipes", metavar="RECIPE", nargs="+", help="YAML files, then key=value")


def run(args: argparse.Namespace) -> int:
    from vidgen.recipe.autoencoder import read_any

    paths = [text for text in args.recipes if "=" not in text]
    overrides = [text for text in args.recipes if "=" in text]
    wanted = {"show": 1, "diff": 2}.get(args.action)
    if not paths or (wanted and len(paths) != wanted):
        raise UserError(f"recipe {args.action} takes {wanted or 'some'} files, found {len(paths)}")
    if args.action == "validate":
        return validate(paths, overrides)
    recipes = [read_any(path, overrides) for path in paths]
    if args.action == "show":
        print(dump_yaml(recipes[0]), end="")
    else:
        print("\n".join(diff(*recipes)) or "the recipes are equal")
    return 0


def validate(paths: list[str], overrides: list[str]) -> int:
    """Checks every file before it fails, so that one run shows all that is wrong."""
    from vidgen.recipe.autoencoder import read_any

    problems = []
    for path in paths:
        try:
            read_any(path, overrides)
            print(f"{path}: valid")
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return 0
