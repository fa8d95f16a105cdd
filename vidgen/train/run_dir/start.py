"""Which checkpoint a run starts from, and what becomes of those it does not start from."""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vidgen.errors import UserError
from vidgen.recipe.reader import diff
from vidgen.recipe.yaml_text import parse_yaml
from vidgen.runtime.checkpoint import DamagedCheckpoint, commit
from vidgen.runtime.files import sync_directory
from vidgen.train.report.metrics import FILE_NAME as METRICS
from vidgen.train.run_dir.saves import LAST_SAVED
from vidgen.train.supervise.agreement import Agreement, first_said

RECIPE = "recipe.yaml"
DAMAGED, NEWER = "damaged", "newer"  # folders of checkpoints set aside
_TAIL = 1 << 16  # bytes of metrics.jsonl that hold its last lines


def candidates(run_dir: Path, *, fresh: bool, step: int | None, every: int) -> list[str]:
    """The checkpoints to try, the newest first; none for a run that starts at step 0.

    `step` asks for one of them. A run that has lost its checkpoints is refused.
    """
    if fresh:
        return []
    root = run_dir / "checkpoints"
    found = _all(root)
    if step is not None:
        if step not in found:
            there = ", ".join(map(str, found)) or "none"
            raise UserError(f"--from {step}: {root} has no checkpoint of that step; it has {there}")
        return [str(found[step])]
    if not found:
        _refuse_lost(run_dir, root, every)
    return [str(path) for _, path in sorted(found.items(), reverse=True)]


def _all(root: Path) -> dict[int, Path]:
    return commit.complete(root) | commit.incomplete(root)


def _refuse_lost(run_dir: Path, root: Path, every: int) -> None:
    """Refuse where the run directory says that there were checkpoints, and there are none."""
    state = _state(root)
    evidence = _evidence(run_dir, every)
    if root.is_symlink() and not root.exists():
        evidence = evidence or "the link says that there was one"
    elif root.exists() and not root.is_dir():
        evidence = evidence or "expected a folder"
    if evidence is None:
        return
    raise UserError(
        f"{root} {state}, but {evidence}: mount or restore the checkpoints, or pass --fresh to "
        "start at step 0, which keeps the old run beside the new one"
    )


def _state(root: Path) -> str:
    if root.is_symlink() and not root.exists():
        return f"is a link to {os.readlink(root)}, which does not exist"
    if not root.exists():
        return "does not exist"
    if not root.is_dir():
        return "is not a folder"
    names = sorted(path.name for path in root.iterdir())
    if not names:
        return "is empty" + (" and a mount point" if root.is_mount() else "")
    return f"holds no complete checkpoint (it holds {', '.join(names[:4])})"


def _evidence(run_dir: Path, every: int) -> str | None:
    """What says that the run had a checkpoint."""
    saved = _json_step((run_dir / LAST_SAVED).read_bytes()) if _is_file(run_dir, LAST_SAVED) else 0
    if saved:
        return f"{LAST_SAVED} says that step {saved} was saved"
    has_recipe = _is_file(run_dir, RECIPE)
    if not _is_file(run_dir, METRICS):
        return f"{RECIPE} is that of a run, whose {METRICS} is gone too" if has_recipe else None
    reached = _last_step(run_dir / METRICS)
    every = _every(run_dir / RECIPE) or every
    if reached >= every:
        return f"{METRICS} reaches step {reached} of a run that saved every {every} steps"
    return None


def _is_file(run_dir: Path, name: str) -> bool:
    return (run_dir / name).is_file()


def _every(recipe: Path) -> int | None:
    """`checkpoint.every` of a recipe that a run wrote."""
    try:
        stored, _ = parse_yaml(recipe.read_text(encoding="utf-8"), str(recipe))
        every = stored["checkpoint"]["every"]
    except (OSError, UserError, ValueError, KeyError, TypeError):
        return None
    return every if isinstance(every, int) and every > 0 else None


def _last_step(metrics: Path) -> int:
    """The newest step that has a line; 0 where none can be read."""
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - _TAIL))
        lines = file.read().split(b"\n")
    return max(map(_json_step, lines), default=0)


def _json_step(line: bytes) -> int:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return 0
    return step if isinstance(step, int) else 0


def set_aside(run_dir: Path, chosen: Path, damaged: Sequence[Path]) -> list[str]:
    """Move damaged checkpoints, and those newer than the chosen one, out of the way of the next
    start; what was done, a line each. Nothing is removed."""
    root = run_dir / "checkpoints"
    found = _all(root)
    step = next(number for number, path in found.items() if path == chosen)
    lines = []
    for number, path in found.items():
        if path in damaged or number > step:
            folder = root / (DAMAGED if path in damaged else NEWER)
            lines.append(_move(path, commit.step_directory(folder, number)))
    if lines:
        sync_directory(root)
    return lines


def _move(path: Path, to: Path) -> str:
    """Under its own name, with a number where that is taken."""
    try:
        to.parent.mkdir(exist_ok=True)
        taken, number = to, 1
        while os.path.lexists(taken):
            number += 1
            taken = to.with_name(f"{to.name}-{number}")
        os.rename(path, taken)
        sync_directory(to.parent)
    except OSError as error:
        raise UserError(
            f"{path} cannot be moved to {to.parent}: {error.strerror}; move it out of the way, so "
            "that no later start resumes from it"
        ) from None
    return f"{path} is kept as {taken}"


def first_undamaged(
    run_dir: Path,
    paths: Sequence[str],
    load: Callable[[Path], dict[str, Any]],
    agreement: Agreement,
) -> tuple[dict[str, Any], list[str]]:
    """What `load` returns of the first checkpoint that no rank finds damaged, and lines for the
    log about those before it, which are set aside."""
    damage: list[str] = []
    for path in map(Path, paths):

        def attempt(path: Path = path) -> tuple[str | None, dict[str, Any]]:
            try:
                return None, load(path)
            except DamagedCheckpoint as error:
                return str(error), {}

        line, objects = agreement.together(attempt)
        found = agreement.decide(line, first_said)
        if found is None:
            damaged = [Path(other) for other in paths[: len(damage)]]
            moved = agreement.from_first(partial(set_aside, run_dir, path, damaged))
            return objects, [f"a checkpoint is damaged: {line}" for line in damage] + moved
        damage.append(found)
    if len(paths) == 1:
        raise UserError(damage[0])
    raise UserError(
        f"all {len(paths)} checkpoints are damaged; the newest: {damage[0]}; the oldest: "
        f"{damage[-1]}"
    )


def check_unchanged(path: Path, then: Any, now: Any, sections: Sequence[str]) -> None:
    """Refuse a recipe that differs from the checkpoint's in one of the sections."""
    for section in sections:
        changed = diff(getattr(then, section), getattr(now, section))
        if changed:
            raise UserError(
                f"{path} was trained with another {section} ({section}.{changed[0]}); resume "
                "with the recipe as it was, or pass --fresh to start a new run beside it"
            )
