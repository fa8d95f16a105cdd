"""Ten steps under every combination of ZeRO, context, tensor parallelism and accumulation.

    python benchmarks/parallel/bench_matrix.py [--steps 10]

A tiny model on gloo; each curve is compared with one process's, and the largest relative
difference of a loss and of a gradient norm is kept. All is fp32.
"""

import argparse
import itertools
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vidgen.data.synthetic.shapes import TRAINED, write_dataset
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.runtime.observe import results
from vidgen.train import Trainer
from vidgen.train.report.metrics import read_metrics

RECIPE = {
    "name": "matrix",
    "model": {
        "in_channels": 96,
        "hidden_size": 48,
        "num_heads": 4,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [4, 4, 4],
        "vec_in_dim": 16,
        "context_in_dim": 16,
        "cond_embed": False,
    },
    "autoencoder": {"kind": "block_dct"},
    "text": {"length": 8, "token_width": 16, "pooled_width": 16},
    "optim": {"lr": 5e-3, "warmup": 2, "eps": 1e-8},
    "checkpoint": {"every": 1000},
}
SPLITS = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]  # context, ulysses


def recipe(folder: Path, steps: int, batch: int, accumulate: int, parallel: Any) -> Recipe:
    buckets = {"32px_ar1:1": {1: {"batch": batch}, 9: {"batch": batch}}}
    train = {"steps": steps, "device": "cpu", "dtype": "float32", "accumulate": accumulate}
    whole = {
        **RECIPE,
        "run_dir": str(folder / "run"),
        "data": {
            "manifest": str(folder.parent / "manifest.parquet"),
            "buckets": buckets,
            "workers": 0,
        },
        "train": train,
        "parallel": parallel,
    }
    return read_recipe(whole, [], Recipe)


def train(rank: int, world: int, port: int, folder: Path, made: dict[str, Any]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  of this process, until it ends
    Trainer(recipe(folder, **made)).run()


def curve(folder: Path, world: int, **made: Any) -> list[tuple[float, float]]:
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=train, args=(rank, world, port, folder, made))
        for rank in range(world)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    if any(child.exitcode for child in children):
        raise RuntimeError(f"{made} on {world} ranks: {[child.exitcode for child in children]}")
    return [(record["loss"], record["grad_norm"]) for record in read_metrics(folder / "run")]


def difference(found: list[tuple[float, float]], wanted: list[tuple[float, float]]) -> list[float]:
    pairs = list(zip(found, wanted, strict=True))
    return [max(abs(a[i] - b[i]) / b[i] for a, b in pairs) for i in (0, 1)]


def main(argv: Sequence[str] | None = None) -> Sequence[results.Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--limit", type=int, help="the first combinations alone")
    parser.add_argument("--out", help="where the results go (default: the machine's folder)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = results.Kept("parallel_matrix", out=args.out)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        made = write_dataset(root, scenes=TRAINED[:8], clips=((1, 1), (9, 1)), side=32, seed=1)
        if made != root / "manifest.parquet":
            made.rename(root / "manifest.parquet")
        numbers = itertools.count()

        def run(world: int, batch: int, accumulate: int, **parallel: int) -> Any:
            return curve(
                root / str(next(numbers)),
                world,
                steps=args.steps,
                batch=batch,
                accumulate=accumulate,
                parallel=parallel,
            )

        alone = {accumulate: run(1, 4, accumulate) for accumulate in (1, 2)}
        combinations = itertools.product((2, 3), SPLITS, (1, 2), (1, 2))
        for zero, (context, ulysses), tensor, accumulate in itertools.islice(
            combinations, args.limit
        ):
            data = 2 if context * tensor < 4 else 1
            start = time.perf_counter()
            found = run(
                context * tensor * data,
                4 // data,
                accumulate,
                zero=zero,
                context=context,
                ulysses=ulysses,
                tensor=tensor,
            )
            loss, norm = difference(found, alone[accumulate])
            rows.add(
                {
                    "zero": zero,
                    "context": context,
                    "ulysses": ulysses,
                    "tensor": tensor,
                    "data": data,
                    "accumulate": accumulate,
                    "steps": args.steps,
                    "loss_differs_by": loss,
                    "norm_differs_by": norm,
                    "seconds": time.perf_counter() - start,
                }
            )
            print(results.table(rows[-1:]), flush=True)
    print(results.table(rows))
    print(rows.save())
    return rows


QUICK = ("--steps", "1", "--limit", "1")


def test_parallel_matrix(suite: Callable[..., None]) -> None:
    suite(main, "parallel_matrix", QUICK)


if __name__ == "__main__":
    main()
