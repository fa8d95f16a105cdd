"""`vidgen bench`: how fast operations and models run on this machine."""

import argparse
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
  vidgen bench ops --tokens 8960
  vidgen bench mfu recipes/stage1.yaml --bucket "256px x 129" --out mfu.json
  vidgen bench step recipes/stage1.yaml --bucket "256px x 129"
  vidgen bench mfu recipes/stage1.yaml model=tiny --bucket "256px x 5" --batch 1
  vidgen bench dcae recipes/stage3.yaml --bucket "768px x 129"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "suite",
        choices=("ops", "mfu", "step", "dcae"),
        help="ops: our operations beside eager torch and a plain copy; "
        "mfu: forward and backward of a recipe's model, beside the report's pace; "
        "step: what takes the time of one block of it; "
        "dcae: how much faster it trains and samples with the Video DC-AE's latents",
    )
    parser.add_argument(
        "recipe", metavar="RECIPE", nargs="*", help="mfu, step, dcae: a YAML file, then key=value"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="default bfloat16"
    )
    parser.add_argument("--repeats", metavar="N", type=count, default=5, help="the best counts")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON")
    ops = parser.add_argument_group("ops")
    ops.add_argument("--tokens", metavar="L", type=count, default=4096, help="default 4096")
    ops.add_argument("--width", metavar="D", type=count, default=3072, help="default 3072")
    ops.add_argument("--heads", metavar="H", type=count, default=24, help="default 24")
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

    from vidgen.runtime.observe import hardware, results

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; `vidgen doctor` says more")
    use_cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if use_cuda else "cpu")
    dtype = getattr(torch, args.dtype)
    if args.suite == "ops":
        body, report = run_ops(args, device, dtype)
    else:
        body, report = run_model(args, device, dtype)
    result: dict[str, Any] = {
        "suite": args.suite,
        "command": "vidgen " + shlex.join(sys.argv[1:]),
        "device": torch.cuda.get_device_name(device) if use_cuda else hardware.cpu()["name"],
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "versions": hardware.versions(),
        **body,
    }
    if args.out:
        settings = {name: value for name, value in body.items() if name != "rows"}
        results.write(args.suite, body["rows"], settings=settings, out=args.out)
    print(json.dumps(result, indent=2) if args.json else "\n".join(report(result)))


def run_ops(args: argparse.Namespace, device: "torch.device", dtype: "torch.dtype") -> Suite:
    from vidgen.cli.bench.ops import measure, report

    if args.recipe:
        raise UserError(f"bench ops takes no recipe, found {args.recipe[0]!r}")
    if args.width % (2 * args.heads):
        raise UserError(f"--width {args.width} does not divide into {args.heads} even heads")
    return measure(device, dtype, args.tokens, args.width, args.heads, args.repeats), report


def run_model(args: argparse.Namespace, device: "torch.device", dtype: "torch.dtype") -> Suite:
    from vidgen.bench import dcae, mfu

    if not args.recipe:
        raise UserError(f"bench {args.suite} takes a recipe, such as recipes/stage1.yaml")
    recipe = read_transformer(args.recipe[0], args.recipe[1:])
    where = (device, dtype, recipe, args.bucket, args.batch)
    if args.suite == "step":
        return mfu.measure_parts(*where), mfu.report_parts
    if args.suite == "dcae":
        return dcae.measure(*where, args.repeats), dcae.report
    return mfu.measure(*where, args.repeats), mfu.report
