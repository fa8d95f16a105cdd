"""Print the libraries that vidgen and some of its extras need, one a line, from pyproject.toml.

`python tools/requirements.py video train` lists the core dependencies and those two extras. It lets
the libraries be installed without building vidgen, so a change of one does not redo the other.
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(project: dict, extras: list[str]) -> list[str]:
    """An extra that names others, as `vidgen[video,text]`, stands for their requirements."""
    found = list(project["dependencies"])
    for extra in extras:
        for requirement in project["optional-dependencies"][extra]:
            own = re.fullmatch(rf"{project['name']}\[([\w,\s-]+)\]", requirement)
            found += requirements(project, re.split(r"\s*,\s*", own[1])) if own else [requirement]
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    table = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    print("\n".join(requirements(table, sys.argv[1:])))
