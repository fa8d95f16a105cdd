"""`vidgen bench`: how fast operations and models run on this machine."""

import argparse
import functools
import json
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vidgen.cli.arguments import count, read_transformer
from vidgen.errors import UserError

if TYPE_CHECKING:
    import torch

# What was measured, and how to print it.
Suite = tuple[dict[str, Any], Callable[[dict[str, Any]], list[str]]]

EXAMPLE = """\
  vidgen bench ops --tokens 8960 --op modulate gelu_tanh --peer eager torch.compile
  vidgen bench mfu stage1 --bucket "256px x 129" --out mfu.json
  vidgen bench step stage1 --bucket "256px x 129"
  vidgen bench mfu stage1 model=tiny --bucket "256px x 5" --batch 1
  vidgen bench dcae stage3 --bucket "768px x 129"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "suite",
        choices=("ops", "mfu", "step", "dcae"),
        help="ops: the fused operations beside a plain copy and their peers in torch; "
        "mfu: forward and backward of a recipe's model, beside the report's pace; "
        "step: what takes the time of one block of it; "
        "dcae: how much faster it trains and samples with the Video DC-AE's latents",
    )
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs="*",
        help="mfu, step, dcae: a YAML file or a name, then key=value",
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="default bfloat16"
    )
    parser.add_argument("--repeats", metavar="N", type=count, default=5, help="the best counts")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON")
    ops = parser.add_argument_group("ops")
    ops.add_argument(
        "--tokens", metavar="L", type=count, nargs="+", default=[4096], help="default 4096"
    )
    ops.add_argument("--width", metavar="D", type=count, default=3072, help="default 3072")
    ops.add_argument("--heads", metavar="H", type=count, default=24, help="default 24")
    ops.add_argument("--op", metavar="NAME", nargs="+", help="default: all of them")
    ops.add_argument(
        "--peer",
        metavar="NAME",
        nargs="*",
        choices=("eager", "torch.compile"),
        default=["eager"],
        help="eager (the default), torch.compile",
    )
    mfu = parser.add_argument_group("mfu, step and dcae")
    mfu.add_argument(
        "--bucket",
        metavar="NAME",
        action="append",
        help='"256px x 129", several times for several; default: all of the recipe\'s, of which '
        "step and dcae take the longest",
    )
    mfu.add_argument("--batch", metavar="N", type=count, help="default: the bucket's")


def run(args: argparse.Namespace) -> None:
    import torch

    from vidgen.runtime.observe import hardware

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; `vidgen doctor` says more")
    use_cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if use_cuda else "cpu")
    dtype = getattr(torch, args.dtype)
    if args.suite == "ops":
        body, report = run_ops(args, device, dtype)
    else:
        body, report = run_model(args, device, dtype)
        keep(args, body)
    result: dict[str, Any] = {
        "suite": args.suite,
        "command": "vidgen " + shlex.join(sys.argv[1:]),
        "dtype": args.dtype,
        "versions": hardware.versions(),
        **body,
        "device": torch.cuda.get_device_name(device) if use_cuda else hardware.cpu()["name"],
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result, indent=2) if args.json else "\n".join(report(result)))


def keep(args: argparse.Namespace, body: dict[str, Any]) -> None:
    from vidgen.runtime.observe import results

    if not args.out:
        return
    settings = {name: value for name, value in body.items() if name != "rows"}
    results.write(args.suite, body["rows"], settings=settings, out=args.out)


def run_ops(args: argparse.Namespace, device: "torch.device", dtype: "torch.dtype") -> Suite:
    """Every row is kept as soon as it is measured."""
    from vidgen.bench import ops
    from vidgen.bench.cases import CASES, Size

    if args.recipe:
        raise UserError(f"bench ops takes no recipe, found {args.recipe[0]!r}")
    if args.width % (2 * args.heads):
        raise UserError(f"--width {args.width} does not divide into {args.heads} even heads")
    for name in args.op or ():
        if name not in CASES:
            raise UserError(f"--op {name!r} is not an op, expected one of: {', '.join(CASES)}")
    ops.reuse_freed_memory()
    settings = ops.Settings(
        sizes=[Size(tokens, args.width, args.heads) for tokens in args.tokens],
        dtypes=[dtype],
        device=device,
        names=args.op or list(CASES),
        peers=args.peer,
        rounds=args.repeats,
    )
    body: dict[str, Any] = {**settings.described(), "rows": []}
    for row in ops.measure(settings):
        body["rows"].append(row)
        keep(args, body)
    return body, ops.report


def run_model(args: argparse.Namespace, device: "torch.device", dtype: "torch.dtype") -> Suite:
    from vidgen.bench import dcae, mfu

    if not args.recipe:
        raise UserError(f"bench {args.suite} takes a recipe, such as stage1")
    recipe = read_transformer(args.recipe[0], args.recipe[1:])
    tell = functools.partial(keep, args)  # every row is kept as soon as it is measured
    where = (device, dtype, recipe, args.bucket, args.batch)
    if args.suite == "step":
        return mfu.measure_parts(*where), mfu.report_parts
    if args.suite == "dcae":
        return dcae.measure(*where, args.repeats, tell), dcae.report
    return mfu.measure(*where, args.repeats, tell), mfu.report
