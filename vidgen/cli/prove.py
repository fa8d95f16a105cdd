"""`vidgen prove`: sample a fixed set of prompts, judge the videos, print a table with intervals."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidgen.cli.arguments import count

if TYPE_CHECKING:
    from vidgen.evaluate.prove.report import Proved

EXAMPLE = """\
  vidgen prove demo
  vidgen prove runs/demo/generator --methods euler:20 euler:4 bits:4
  vidgen prove runs/distilled --against demo --prompts 192
  vidgen prove demo --prompts 12 --methods euler:10           # under a minute
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="CHECKPOINT", help="a run, one step of it, or demo: the shipped model")
    add("--against", metavar="REF", help="another checkpoint, sampled by the first method")
    add(
        "--methods",
        nargs="+",
        metavar="METHOD",
        default=["euler:50"],
        help="the first is the "
        "reference: euler:4, heun:10, guidance:7, bits:4, drop:3, mask:0.5, captions:shuffled, "
        "joined by +; ladder: all of the kept table",
    )
    add("--prompts", metavar="N", type=count, default=96)
    add("--seeds", metavar="N", type=count, default=1, help="samples a prompt")
    add("--first-seed", metavar="N", type=int, default=0)
    add(
        "--part",
        choices=("report", "tune"),
        default="report",
        help="prompts to report on, or to choose settings on; they share no scene",
    )
    add("--device", default="auto")
    add("--out", metavar="DIR", default="prove", help="results, JSON and page (default: prove/)")


def run(args: argparse.Namespace) -> None:
    from vidgen.evaluate.prove import report, suite
    from vidgen.evaluate.prove.methods import LADDER, parse
    from vidgen.evaluate.prove.run import Prover, real_rows, reconstructed
    from vidgen.runtime import parallel
    from vidgen.sample import Pipeline
    from vidgen.sample.demo import open_source

    names = list(LADDER) if args.methods == ["ladder"] else list(dict.fromkeys(args.methods))
    methods = [parse(name) for name in names]
    items = suite.items(args.prompts, args.seeds, part=args.part, first_seed=args.first_seed)
    folder = Path(args.out)
    proved: list[Proved] = []
    with parallel.start(args.device) as world:

        def prove(source: str, chosen: list[Any], label: str) -> Pipeline:
            pipeline = open_source(source, world.device)
            prover = Prover(pipeline, folder, items)
            for method in chosen:
                began = time.monotonic()
                counts = prover.run(method, rank=world.rank, world=world.world)
                world.barrier()
                if world.rank == 0:
                    print(
                        f"{label}{method.name}: {counts}, {time.monotonic() - began:.0f} s",
                        file=sys.stderr,
                        flush=True,
                    )
                    proved.append(report.Proved(label + method.name, method, prover))
            return pipeline

        if args.against:
            prove(args.against, methods[:1], f"{args.against} ")
        pipeline = prove(args.source, methods, "")
        if world.rank:
            return
        real, other = real_rows(items, 2)
        ceiling = real_rows(items[: min(48, len(items))], 1, lambda v: reconstructed(pipeline, v))[
            0
        ]
        summary = report.summarise(proved, real, other, ceiling)
        summary["command"] = " ".join(["vidgen", "prove", *sys.argv[2:]])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prove.json").write_text(json.dumps(summary, indent=1))
        print(report.as_text(summary))
        page = report.write(folder / "prove.html", summary, proved)
        print(f"{folder / 'prove.json'}, {page}")
        pipeline.close()
