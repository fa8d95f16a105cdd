"""The protocol that makes a checkpoint visible whole or not at all, and removes old ones.

A step is written in `.step-N.writing`, durable before its manifest exists and renamed to `step-N`
after. Whatever a crash leaves has a name that says what it is:

    .step-N.writing     half a checkpoint: rubbish
    .step-N.removing    an old checkpoint on its way out: rubbish
    .step-N.replaced    the complete checkpoint that a new one of the same step was replacing:
                        it counts as step N until the new one is in place
"""

import contextlib
import errno
import os
import re
import shutil
from pathlib import Path

from vidgen.errors import UserError
from vidgen.runtime.checkpoint.layout import MANIFEST
from vidgen.runtime.files import create, sync_directory

_STEP = re.compile(r"step-(\d+)")
_LEFTOVER = re.compile(r"\.step-(\d+)\.(writing|removing|replaced)")


def step_directory(root: Path, step: int) -> Path:
    return root / f"step-{step:09d}"


def writing_directory(root: Path, step: int) -> Path:
    return _leftover(root, step, "writing")


def _leftover(root: Path, step: int, kind: str) -> Path:
    return root / f".step-{step:09d}.{kind}"


def complete(root: Path) -> dict[int, Path]:
    """Every complete checkpoint under root: step to directory, in the order of steps."""
    found: dict[int, Path] = {}
    if not root.is_dir():
        return found
    for entry in root.iterdir():
        if not (entry / MANIFEST).is_file():
            continue
        if match := _STEP.fullmatch(entry.name):
            found[int(match[1])] = entry
        elif (match := _LEFTOVER.fullmatch(entry.name)) and match[2] == "replaced":
            found.setdefault(int(match[1]), entry)
    return dict(sorted(found.items()))


def incomplete(root: Path) -> dict[int, Path]:
    """What has the name of a step and no manifest: damaged since, for a save leaves no such."""
    whole = complete(root)
    found = {
        int(match[1]): entry
        for entry in (root.iterdir() if root.is_dir() else ())
        if (match := _STEP.fullmatch(entry.name))
    }
    return {step: path for step, path in sorted(found.items()) if step not in whole}


def steps(root: str | os.PathLike[str]) -> list[int]:
    """The steps that have a complete checkpoint under root, oldest first."""
    return list(complete(Path(root)))


def latest(root: str | os.PathLike[str]) -> Path | None:
    """The newest complete checkpoint under root, or None."""
    return next(reversed(complete(Path(root)).values()), None)


def steps_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of steps that a path means: a run's checkpoints/, or the path itself."""
    inside = Path(path) / "checkpoints"
    return inside if inside.is_dir() else Path(path)


def find_step(path: str | os.PathLike[str]) -> Path | None:
    """The step that a path means: itself, or the newest of a run or of a folder of steps.

    None where the path is none of these, such as published weights.
    """
    if (Path(path) / MANIFEST).is_file():
        return Path(path)
    return latest(steps_folder(path))


def leftovers(root: str | os.PathLike[str]) -> list[Path]:
    """What crashes have left under root, which the next save cleans."""
    root = Path(root)
    counted = set(complete(root).values())
    return sorted(p for p in root.iterdir() if _LEFTOVER.fullmatch(p.name) and p not in counted)


def begin(root: Path, step: int) -> None:
    """Clean what crashes left and make the hidden directory the step is written in."""
    if not root.is_dir():
        missing = [p for p in (root, *root.parents) if not p.exists()]
        root.mkdir(parents=True, exist_ok=True)
        for made in missing:
            sync_directory(made.parent)
    _clean(root)
    os.mkdir(writing_directory(root, step))


def _clean(root: Path) -> None:
    for entry in list(root.iterdir()):
        match = _LEFTOVER.fullmatch(entry.name)
        if match is None:
            continue
        if match[2] == "replaced":
            final = step_directory(root, int(match[1]))
            if not (final / MANIFEST).is_file():
                os.replace(entry, final)
                sync_directory(root)
                continue
        _remove(entry)


def _remove(entry: Path) -> None:
    """Of a link, such as a step that was moved to other storage, only the link: what it names
    belongs to whoever made it."""
    if entry.is_symlink() or not entry.is_dir():
        entry.unlink()
    else:
        shutil.rmtree(entry)


def publish(root: Path, step: int, manifest: bytes) -> None:
    """Turn a directory whose files and names are durable into the checkpoint of its step."""
    writing = writing_directory(root, step)
    temporary = writing / f"{MANIFEST}.tmp"
    create(temporary, manifest)
    os.replace(temporary, writing / MANIFEST)
    sync_directory(writing)

    final = step_directory(root, step)
    replaced = _leftover(root, step, "replaced")
    if os.path.lexists(final):
        os.replace(final, replaced)
    os.replace(writing, final)
    sync_directory(root)
    if os.path.lexists(replaced):
        _remove(replaced)


def abandon(root: Path, step: int) -> None:
    """Remove what a failed save has written; the older checkpoints stay as they are."""
    shutil.rmtree(writing_directory(root, step), ignore_errors=True)


def prune(root: Path, newest: int, keep_last: int, keep_every: int | None) -> None:
    """Remove checkpoints beyond the last `keep_last`, but never `newest` nor a kept multiple."""
    found = complete(root)
    removed = []
    for step in list(found)[:-keep_last]:
        if step == newest or (keep_every is not None and step % keep_every == 0):
            continue
        removed.append(_leftover(root, step, "removing"))
        os.replace(found[step], removed[-1])
    if removed:
        # Durably out of sight before the first file goes: no crash shows half of one.
        sync_directory(root)
        for directory in removed:
            _remove(directory)


def explain(error: OSError, root: Path, step: int, size: int) -> Exception:
    """The user's one line for an error that the user can mend, or else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = "an unknown number of"
        with contextlib.suppress(OSError):
            free = f"{shutil.disk_usage(root).free / 2**20:,.0f}"
        why = "its quota is used up" if error.errno == errno.EDQUOT else "the disk is full"
        return UserError(
            f"step {step} was not saved in {root}: {why} ({size / 2**20:,.0f} MiB needed, {free} "
            "MiB free); older checkpoints are intact; free some space or lower keep_last"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return UserError(
            f"step {step} was not saved in {root}: {error.strerror} ({error.filename}); "
            "expected a directory this user may write in; name another one"
        )
    return error
