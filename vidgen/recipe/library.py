"""The recipes that come with vidgen, each known by its name."""

from pathlib import Path

import vidgen
from vidgen.errors import UserError


def folder() -> Path:
    """In the package where a wheel was installed, at the root of the repository in a checkout."""
    package = Path(vidgen.__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    return sorted(path.stem for path in folder().glob("*.yaml"))


def find(source: str | Path, beside: Path = Path()) -> Path:
    """The file that a path or a name means, relative to a folder; a file wins over a name."""
    path = beside / source
    if not path.is_file() and str(source) in names():
        return folder() / f"{source}.yaml"
    return path


def summary(name: str) -> str:
    """The first line of a recipe's leading comment."""
    with find_named(name).open(encoding="utf-8") as file:
        return file.readline().lstrip("#").strip()


def copy(name: str, destination: str | Path) -> None:
    """Copy a recipe to a new file, comments included."""
    text = find_named(name).read_bytes()
    try:
        with Path(destination).open("xb") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{destination} exists; name another file, or remove it") from None
    except OSError as error:
        raise UserError(f"{destination}: cannot be written: {error.strerror}") from None


def find_named(name: str) -> Path:
    if name not in names():
        raise UserError(f"vidgen has no recipe named {name!r}; there is {', '.join(names())}")
    return folder() / f"{name}.yaml"
