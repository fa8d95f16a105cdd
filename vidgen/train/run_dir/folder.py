"""The directory of a run: made at its start, set aside for a fresh one."""

from itertools import count
from pathlib import Path

from vidgen.errors import UserError
from vidgen.runtime.files import remove_leftovers
from vidgen.train.run_dir import lock


def make_run_dir(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
    except OSError as error:
        raise UserError(
            f"run_dir {path} cannot be made: {error.strerror}; name another one"
        ) from None


def set_old_run_aside(run_dir: Path, *, keep: str) -> None:
    """All the run directory holds but its lock, and the data (`keep`), should that lie in there."""
    data = Path(keep).resolve()
    found = [
        entry
        for entry in (run_dir.iterdir() if run_dir.is_dir() else ())
        if entry.name != lock.NAME and not data.is_relative_to(entry.resolve())
    ]
    if not found:
        return
    beside = (run_dir.with_name(f"{run_dir.name}-old{n}") for n in count(1))
    old = next(path for path in beside if not path.exists())
    old.mkdir()
    for entry in found:
        try:
            entry.rename(old / entry.name)
        except OSError as error:
            raise UserError(
                f"--fresh cannot move {entry} to {old}: {error.strerror}; move it yourself, or set "
                "another run_dir"
            ) from None
    print(f"the run that was in {run_dir} is now in {old}")
