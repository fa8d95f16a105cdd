"""`vidgen recipe`: look at recipes without running them."""

import argparse

from vidgen.errors import UserError

EXAMPLE = """\
  vidgen recipe list
  vidgen recipe show stage1 model=tiny
  vidgen recipe copy stage1 mine.yaml
  vidgen recipe validate mine.yaml
  vidgen recipe diff stage1 stage2
  vidgen recipe explain stage1
"""

TAKES = {
    "list": 0,
    "show": 1,
    "copy": 2,
    "diff": 2,
    "explain": 1,
    "validate": None,
}  # None: one or more


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=tuple(TAKES),
        help="list: the recipes that come with vidgen; show: every value, defaults included; copy: "
        "one of vidgen's to a new file; validate: check; diff: what differs; explain: the "
        "section or table of the report that each value comes from",
    )
    parser.add_argument(
        "recipes",
        metavar="RECIPE",
        nargs="*",
        help="names of vidgen's recipes or YAML files, then key=value",
    )


def run(args: argparse.Namespace) -> int:
    from vidgen.recipe import diff, dump_yaml, explain, library, read_any
    from vidgen.text_table import table

    paths = [text for text in args.recipes if "=" not in text]
    overrides = [text for text in args.recipes if "=" in text]
    wanted = TAKES[args.action]
    if len(paths) != wanted if wanted is not None else not paths:
        expected = "some" if wanted is None else wanted
        raise UserError(f"recipe {args.action} takes {expected} files, found {len(paths)}")
    if overrides and args.action in ("list", "copy"):
        raise UserError(f"recipe {args.action} takes no key=value, found {overrides[0]!r}")
    if args.action == "validate":
        return validate(paths, overrides)
    if args.action == "list":
        width = max(map(len, library.names()))
        for name in library.names():
            print(f"{name:<{width}}  {library.summary(name)}")
        return 0
    if args.action == "copy":
        library.copy(*paths)
        print(f"{paths[0]} -> {paths[1]}")
        return 0
    if args.action == "explain":
        rows = [["key", "value", "source", "note"]]
        rows += [[r.key, str(r.value), r.source, r.note] for r in explain(paths[0], overrides)]
        print("\n".join(table(rows, numbers=False)))
        return 0
    recipes = [read_any(path, overrides) for path in paths]
    if args.action == "show":
        print(dump_yaml(recipes[0]), end="")
    else:
        print("\n".join(diff(*recipes)) or "the recipes are equal")
    return 0


def validate(paths: list[str], overrides: list[str]) -> int:
    """Checks every file before it fails, so that one run shows all that is wrong."""
    from vidgen.recipe import read_any

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
