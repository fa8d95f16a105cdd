"""`vidgen plan`: memory, step times, days and dollars of a recipe."""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from vidgen.cli.arguments import add_recipe, count, read_transformer
from vidgen.errors import UserError
from vidgen.plan import TrainingPlan
from vidgen.text_table import table

if TYPE_CHECKING:
    from vidgen.plan.planner import Keeping
    from vidgen.recipe.schema import Recipe
    from vidgen.runtime.observe.gpus import Gpu

EXAMPLE = """\
  vidgen plan stage1 --gpu h200 --gpus 224
  vidgen plan stage1 --gpu b200 --gpus 64 --fit-batches --price 4.5
  vidgen plan stage1 --roofline --gpu h100
  vidgen plan stage1 --gpus 10000 parallel.copies=1250 recompute=auto
"""


def fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return value


def price(text: str) -> float:
    return amount("a price in dollars")(text)


def amount(what: str) -> Callable[[str], float]:
    """The `type` of an argument that is a number from 0 up."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "--gpu",
        default="h200",
        help="a100, h100, h200 (default) or b200, or the .json that `vidgen doctor --json` wrote",
    )
    parser.add_argument(
        "--links", metavar="FILE", help="what `vidgen doctor --distributed --json` wrote"
    )
    parser.add_argument("--gpus", metavar="N", type=count, default=8, help="default 8")
    parser.add_argument(
        "--efficiency",
        metavar="X",
        type=fraction,
        help="executed FLOP/s over the dense bf16 peak; default: the report's system, stage 1",
    )
    parser.add_argument(
        "--goodput",
        metavar="X",
        type=fraction,
        help="share of the wall time spent in steps; default: the report's, stage 1",
    )
    parser.add_argument(
        "--fit-batches", action="store_true", help="find the batch of every bucket anew"
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="find the batch of every bucket by trying on the GPU at hand",
    )
    parser.add_argument(
        "--roofline",
        action="store_true",
        help="time by part of the longest bucket's forward and backward on one GPU, which bound "
        "holds, and what each lever is expected to give",
    )
    parser.add_argument("--price", metavar="USD", type=price, help="dollars a GPU and hour")
    parser.add_argument(
        "--mtbf",
        metavar="HOURS",
        type=count,
        default=50_000,
        help="mean time between failures of one GPU, with its share of the machine; default 50000",
    )
    parser.add_argument(
        "--restart",
        metavar="S",
        type=amount("a number of seconds"),
        default=300.0,
        help="seconds from a failure to the next step; default 300",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="S",
        type=amount("a number of seconds"),
        default=10.0,
        help="seconds for which a checkpoint stops training; default 10",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(args: argparse.Namespace) -> None:
    from vidgen.plan import plan
    from vidgen.plan.cost import REPORT, Efficiency
    from vidgen.plan.failures import Reliability, best_interval, effective_fraction
    from vidgen.plan.measured import gpu_measured, with_links
    from vidgen.runtime.observe.gpus import gpu_named

    recipe = read_transformer(args.recipe, args.overrides)
    if args.search:
        print("\n".join(searched(recipe)))
        return
    if args.roofline:
        gpu = gpu_measured(args.gpu) if args.gpu.endswith(".json") else gpu_named(args.gpu)
        print("\n".join(rooflines(recipe, gpu, as_json=args.json)))
        return
    efficiency = Efficiency(
        compute=args.efficiency or REPORT.compute, goodput=args.goodput or REPORT.goodput
    )
    gpu = gpu_measured(args.gpu) if args.gpu.endswith(".json") else gpu_named(args.gpu)
    found = plan(
        recipe,
        with_links(gpu, args.links) if args.links else gpu,
        args.gpus,
        efficiency,
        fit_batches=args.fit_batches,
        dollars_per_hour=args.price,
    )
    reliability = Reliability(
        gpu_mtbf_hours=args.mtbf, checkpoint_s=args.checkpoint, restart_s=args.restart
    )
    interval = best_interval(reliability, args.gpus)
    share = effective_fraction(reliability, args.gpus, interval)
    if share < 1e-6:
        raise UserError(
            f"{args.gpus} GPUs fail every {reliability.mtbf_s(args.gpus):.3g} s, which leaves no "
            f"time to train beside restarts of {args.restart:g} s: fewer GPUs, a larger --mtbf or "
            "a shorter --restart"
        )
    if args.json:
        failures = {"checkpoint_interval_s": interval, "effective": share}
        print(json.dumps({**found.to_dict(), "failures": failures}, indent=2))
        return
    hours = reliability.mtbf_s(args.gpus) / 3600
    print("\n".join(report(found)))
    print(
        f"failures: one in {hours:.3g} hours at {args.mtbf:g} GPU hours each; saving every "
        f"{interval / 60:.3g} minutes leaves {share:.1%} of the time, {found.days / share:.3g} days"
    )


def rooflines(recipe: "Recipe", gpu: "Gpu", *, as_json: bool) -> list[str]:
    from dataclasses import asdict

    from vidgen.plan.roofline import assumptions, levers
    from vidgen.plan.workload import workload_of

    workload = workload_of(recipe)
    longest = max(workload.buckets, key=workload.tokens)
    found = levers(workload, longest, gpu)
    if as_json:
        rows = [{**asdict(one), "seconds": one.seconds} for one in found]
        where = {"bucket": longest.name, "batch": longest.batch, "gpu": gpu.name}
        return [json.dumps({**where, "predictions": rows}, indent=2)]
    parts = [["part", "s", "share", "bound by"]]
    parts += [
        [part.name, f"{part.seconds:.3g}", f"{part.seconds / found[0].seconds:.0%}", part.bound]
        for part in found[0].parts
        if part.seconds
    ]
    rates = [["", "s", "videos/s a GPU"]]
    rates += [[one.what, f"{one.seconds:.3g}", f"{one.videos_per_s:.3g}"] for one in found]
    share = "" if workload.context == 1 else f", one rank's part of {workload.context}"
    return [
        f"{recipe.name}, {longest.name}, batch {longest.batch}{share}, on {gpu.name}: a prediction",
        "",
        *table(parts),
        "",
        *table(rates),
        "",
        *assumptions(workload, gpu),
    ]


def searched(recipe: "Recipe") -> list[str]:
    import torch

    from vidgen.bench.measure import Bench, search
    from vidgen.plan.workload import workload_of

    if not torch.cuda.is_available():
        raise UserError("--search measures on a GPU, and torch sees none; leave it out to estimate")
    bench = Bench(workload_of(recipe), torch.device("cuda"), torch.bfloat16)
    rows = [["bucket", "batch", "forward ms", "backward ms", "videos/s", "MFU", "GB"]]
    for found in search(bench):
        rows.append(
            [
                found.bucket,
                f"{found.batch}",
                f"{found.forward_ms:.4g}",
                f"{found.backward_ms:.4g}",
                f"{found.videos_per_s:.3g}",
                f"{found.mfu:.1%}",
                f"{found.memory_gb:.1f}",
            ]
        )
    return table(rows)


def report(found: TrainingPlan) -> list[str]:
    head = ["bucket", "tokens", "batch", "encode", "forward", "backward", "exposed", "copies"]
    head += ["step s", "clips/s", "MFU", "HFU", "GB"]
    rows = [head] + [
        [
            row.bucket,
            f"{row.tokens}",
            f"{row.batch}",
            *(f"{t:.3g}" for t in (row.encode_s, row.forward_s, row.backward_s)),
            *(f"{t:.3g}" for t in (row.exposed_s, row.copies_s, row.step_s)),
            f"{row.clips_per_s:.3g}",
            f"{row.mfu:.1%}",
            f"{row.hfu:.1%}",
            f"{row.memory / 1e9:.0f}" + ("" if row.fits else " (does not fit)"),
        ]
        for row in found.rows
    ]
    total = f"{found.days:.3g} days, {found.gpu_days:.4g} GPU days, {cost(found)}"
    hybrid = []
    if found.better_copies is not None:
        over = found.gpus // found.better_copies
        line = f"with parallel.copies={found.better_copies}, parameters divided over {over} GPUs: "
        hybrid.append(f"{line}{found.better_copies_s:.3g} s a step")
    rate = (
        f"{found.gpus} x {found.gpu.name}, {found.efficiency.compute:.1%} of the peak executed, "
        f"{found.efficiency.goodput:.0%} of the time in steps"
    )
    return [
        rate,
        "",
        *table(rows),
        "",
        *table(memory_by_part(found)),
        "",
        *table(kept_blocks(found)),
        "",
        f"{found.steps} steps of at most {found.iteration_s:.3g} s: {total}",
        *hybrid,
    ]


def memory_by_part(found: TrainingPlan) -> list[list[str]]:
    rows = [[f"GB, of {found.gpu.memory / 1e9:.0f}", *found.memory, "on the host"]]
    return rows + [
        [row.bucket, *(f"{part / 1e9:.1f}" for part in (*row.parts.values(), row.keeps.host))]
        for row in found.rows
    ]


def kept_blocks(found: TrainingPlan) -> list[list[str]]:
    """For each bucket what its blocks do, and below it what would take less, if anything would."""
    rows = [["blocks, dual + single", "", "again s", "copies s", "GB", "on the host", "step s"]]
    for row in found.rows:
        rows.append([row.bucket, *keeping(row.keeps)])
        better = row.best
        if better is None:
            if not row.fits:
                rows.append(["  nothing fits", *[""] * 6])
        elif not row.fits or better.step_s < 0.995 * row.step_s:
            rows.append(["  better: recompute=auto", *keeping(better)])
    return rows


def keeping(found: "Keeping") -> list[str]:
    kinds = [
        ", ".join(f"{count} {name}" for name, count in kind.items())
        for kind in (found.dual, found.single)
    ]
    return [
        " + ".join(kind for kind in kinds if kind),
        f"{found.recompute_s:.3g}",
        f"{found.copies_s:.3g}",
        f"{found.activations / 1e9:.1f}",
        f"{found.host / 1e9:.1f}",
        f"{found.step_s:.3g}" + ("" if found.fits else " (does not fit)"),
    ]


def cost(found: TrainingPlan) -> str:
    if found.dollars is None:
        return f"no price known for {found.gpu.name}: give --price"
    return f"{found.dollars:,.0f} USD"
