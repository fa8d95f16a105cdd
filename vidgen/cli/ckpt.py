"""`vidgen ckpt`: look at checkpoints, check them, compare them, carry them elsewhere."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vidgen.errors import UserError
from vidgen.printable import printable

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = """\
  vidgen ckpt ls runs/stage1
  vidgen ckpt verify runs/stage1/checkpoints/step-000085000
  vidgen ckpt diff runs/stage1 runs/again
  vidgen ckpt export runs/stage1 stage1.safetensors --to open-sora --ema
  vidgen ckpt export runs/stage1 stage1-dcp --to dcp
  vidgen ckpt import stage1-dcp runs/other/checkpoints --step 85000
  vidgen ckpt import flux-dcp runs/flux/checkpoints --step 0 --layout flux
"""

TAKES = {"ls": 1, "verify": 1, "export": 2, "import": 2, "diff": 2}
LAYOUTS = ("vidgen", "open-sora", "flux")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=tuple(TAKES),
        help="ls: the steps of a run; verify: read and check every byte; export: to one "
        ".safetensors file or a torch DCP directory; import: from a DCP directory, whose "
        "metadata are a pickle (classes that a DCP does not need are refused); diff: what two "
        "steps differ in",
    )
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="a step's directory, or a run for its newest step; then where to write, or what to "
        "compare with",
    )
    parser.add_argument(
        "--to", choices=(*LAYOUTS, "dcp"), default="vidgen", help="export: default vidgen"
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="import: of weights whose names do not tell it; FLUX.1's and vidgen's are alike",
    )
    parser.add_argument("--ema", action="store_true", help="export: the averaged weights")
    parser.add_argument("--force", action="store_true", help="export: overwrite a file")
    parser.add_argument("--step", type=int, metavar="N", help="import: the step it becomes")


def run(args: argparse.Namespace) -> int:
    if len(args.paths) != TAKES[args.action]:
        raise UserError(
            f"ckpt {args.action} takes {TAKES[args.action]} path(s), found {len(args.paths)}"
        )
    if args.action == "ls":
        return show(root_of(args.paths[0]))
    if args.action == "verify":
        return verify(step_of(args.paths[0]))
    if args.action == "diff":
        return compare(step_of(args.paths[0]), step_of(args.paths[1]))
    if args.action == "import":
        return bring_in(args.paths[0], args.paths[1], args)
    return carry_out(step_of(args.paths[0]), args.paths[1], args)


def root_of(text: str) -> Path:
    """The folder of steps to list: itself, or a run's."""
    from vidgen.runtime import checkpoint

    if not Path(text).is_dir():
        raise UserError(f"{text} is not a directory; expected a run or its checkpoints")
    return checkpoint.steps_folder(text)


def step_of(text: str) -> Path:
    """The step to read: itself, or the newest of a run."""
    from vidgen.runtime import checkpoint

    found = checkpoint.find_step(text)
    if found is None:
        root_of(text)
        raise UserError(f"{text} holds no complete checkpoint; `vidgen ckpt ls {text}` says more")
    return found


def show(root: Path) -> int:
    from vidgen.runtime.checkpoint import describe, leftovers, steps

    if not steps(root) and not leftovers(root):
        print(f"{root}: no checkpoint")
    for step in steps(root):
        about = describe(root, step)
        groups = ", ".join(f"{name} {_size(size)}" for name, size in about.groups.items())
        print(f"{step:>10}  {_size(about.bytes):>9}  {about.world} rank(s)  {groups}")
    for path in leftovers(root):
        print(f"{'half':>10}  {path}: left by a crash; the next save removes it")
    return 0


def verify(step: Path) -> int:
    from tqdm import tqdm

    from vidgen.runtime import checkpoint

    with tqdm(unit="B", unit_scale=True, unit_divisor=1024, desc="verify") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        problems = checkpoint.verify(step, progress)
    if problems:
        raise UserError("\n".join(problems))
    unchecked = checkpoint.not_checked(step)
    what = (
        "complete; what its checksums cover is undamaged" if unchecked else "complete and undamaged"
    )
    print(f"{step}: {what}")
    for line in unchecked:
        print(printable(f"not checked: {line}"))
    return 0


def compare(a: Path, b: Path) -> int:
    from vidgen.recipe import diff, read_any
    from vidgen.runtime.checkpoint import differences, read_objects

    found = False
    trees = [read_objects(path).get("recipe", {}) for path in (a, b)]
    if all(trees):
        for line in diff(*(read_any(tree) for tree in trees)):
            found = True
            print(printable(line))
    for label, how in differences(a, b):
        found = True
        print(printable(f"{label}: {how}"))
    if not found:
        print("recipe and tensors are equal")
    return 0


def carry_out(step: Path, destination: str, args: argparse.Namespace) -> int:
    if args.to == "dcp":
        from vidgen.runtime.checkpoint.dcp import export_dcp

        if args.ema or args.force:
            raise UserError("--to dcp takes every group to a new directory: no --ema, no --force")
        export_dcp(step, destination)
    else:
        from vidgen.models.mmdit.convert import convert

        group = "ema" if args.ema else "model"
        convert(step, destination, to=args.to, group=group, overwrite=args.force)
    print(f"{step} -> {destination} ({args.to})")
    return 0


def bring_in(source: str, root: str, args: argparse.Namespace) -> int:
    from vidgen.models.mmdit.detect import imported_layout
    from vidgen.models.tensor_files import TensorDict
    from vidgen.runtime.checkpoint.dcp import import_dcp

    if args.step is None or args.step < 0:
        raise UserError(f"import needs the step it becomes, such as --step 1000; found {args.step}")

    def layout_of(weights: "Mapping[str, Tensor]", recorded: str | None) -> str:
        if recorded is not None:
            if args.layout not in (None, recorded):
                raise UserError(f"{source}: was exported in layout {recorded}; leave out --layout")
            return recorded
        named = TensorDict(weights)
        named.where = source
        return imported_layout(named, args.layout)

    found = import_dcp(source, root, args.step, layout_of)
    print(f"{source} -> {found.path} ({found.layout})")
    if found.left_out:
        some, more = found.left_out[:3], len(found.left_out) - 3
        print(printable(f"left out: {', '.join(some)}{f' and {more} more' if more > 0 else ''}"))
    return 0


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
