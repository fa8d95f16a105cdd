"""Where each value of a recipe comes from: the tags in its comments, such as `lr: 5e-5 # [4.2]`.

A tag names a section, table or figure of the Open-Sora 2.0 report, "public code" or "ours". On a
line with several values, `keep: [ours]` is the tag of the value named keep.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vidgen.recipe.autoencoder import AutoencoderRecipe
from vidgen.recipe.reader import Source, peek, read_origins
from vidgen.recipe.schema import Recipe

_COMMENT = re.compile(r"""^(?:[^"'#]|"[^"]*"|'[^']*'|\S#)*?\s#\s?(?P<text>.*)$""")
_TAG = re.compile(r"(?:(?P<name>\w+): )?\[(?P<tag>[^\]]+)\]")
_LINE = re.compile(r"(?P<file>.+), line (?P<line>\d+)")


@dataclass(frozen=True)
class Explained:
    key: str  # "optim.lr"
    value: Any
    source: str  # the tag; "" where the recipe does not say
    note: str  # the rest of the line's comment
    where: str  # "recipes/stage1.yaml, line 53"


def explain(recipe: Source, overrides: Sequence[str] = ()) -> list[Explained]:
    """Every value that the recipe or one of its bases states, in order."""
    autoencoder = isinstance(recipe, str | Path) and peek(recipe, "kind") == "autoencoder"
    stated = read_origins(recipe, overrides, AutoencoderRecipe if autoencoder else Recipe)
    found = []
    for keys, (value, where) in stated.items():
        source, note = "", ""
        if (place := _LINE.fullmatch(where)) is not None:
            tags, note = _comment(place["file"], int(place["line"]))
            source = tags.get(keys[-1], tags.get("", ""))
        elif "command line" in where:
            source = "command line"
        found.append(Explained(".".join(keys), value, source, note, where))
    return found


@cache
def _lines(file: str) -> list[str]:
    return Path(file).read_text(encoding="utf-8").splitlines()


def _comment(file: str, line: int) -> tuple[dict[str, str], str]:
    """Tags by the name of their value ("" for all of the line), and the rest of the comment."""
    match = _COMMENT.search(_lines(file)[line - 1])
    if match is None:
        return {}, ""
    text = match["text"]
    tags = {found["name"] or "": found["tag"] for found in _TAG.finditer(text)}
    return tags, " ".join(_TAG.sub("", text).split())
