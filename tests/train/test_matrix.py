"""Ten steps under combinations of ZeRO, context, tensor and hybrid parallelism: one loss curve.

`benchmarks/parallel/matrix.py` runs every combination.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.train import Trainer
from vidgen.train.report.metrics import read_metrics

# fp32 sums in another order (6e-8), which ten steps of AdamW amplify where gradients are small.
ROUNDING = 1e-4
COMMON = ("train.steps=10", "checkpoint.every=1000", "train.log_every=1", "data.workers=0")
# ranks, what divides them
CASES = [
    (2, "zero=2 context=2 ulysses=1", 1),
    (2, "zero=3 context=2 ulysses=2", 2),
    (2, "zero=3 tensor=2", 2),
    (4, "zero=2 context=2 tensor=2", 1),
    (4, "zero=3 context=4 text=replicated", 1),
    (4, "zero=3 copies=2 context=2 ulysses=2", 2),
]


def curve(folder: Path) -> list[tuple[float, float]]:
    return [(record["loss"], record["grad_norm"]) for record in read_metrics(folder)]


def options(case: str, accumulate: int, data_ranks: int) -> list[str]:
    """The global batch stays that of one process."""
    batch = 4 // data_ranks
    buckets = f"{{'32px_ar1:1': {{1: {{batch: {batch}}}, 9: {{batch: {batch}}}}}}}"
    return [
        *COMMON,
        f"train.accumulate={accumulate}",
        f"data.buckets=!replace {buckets}",
        *(f"parallel.{option}" for option in case.split()),
    ]


def train_all(
    rank: int, world: int, folder: Path, recipe: str, cases: list[Any], ports: list[int]
) -> None:
    for number, ((ranks, case, accumulate), port) in enumerate(zip(cases, ports, strict=True)):
        if rank >= ranks:
            continue
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        sizes = dict(option.split("=") for option in case.split())
        together = int(sizes.get("context", 1)) * int(sizes.get("tensor", 1))
        overrides = options(case, accumulate, ranks // together)
        read = read_recipe(recipe, [f"run_dir={folder / str(number)}", *overrides], Recipe)
        Trainer(read).run()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_every_combination_gives_the_curve_of_one_process(
    ranks: Any, tiny: Callable[..., Recipe], recipe_file: Path, tmp_path: Path
) -> None:
    wanted = {}
    for accumulate in (1, 2):
        name = f"one-{accumulate}"
        Trainer(tiny(*options("zero=2", accumulate, 1), run=name)).run()
        wanted[accumulate] = curve(tmp_path / name)
    ranks(train_all, 4, str(recipe_file), CASES, free_ports(len(CASES)), timeout=200)
    for number, (_, case, accumulate) in enumerate(CASES):
        found = curve(tmp_path / "ranks-0" / str(number))
        assert len(found) == 10
        for (loss, norm), (loss0, norm0) in zip(found, wanted[accumulate], strict=True):
            assert loss == pytest.approx(loss0, rel=ROUNDING), case
            assert norm == pytest.approx(norm0, rel=10 * ROUNDING), case
