"""Which of CUDA and Triton is faster on a GPU: what benchmarks/bench_ops.py measured there."""

import json
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch

from vidgen.runtime.observe import results

PATH = Path(__file__).with_name("faster.json")  # machine: op: implementation


@cache
def _measured() -> dict[str, dict[str, str]]:
    kept: dict[str, dict[str, str]] = json.loads(PATH.read_text())
    return kept


def on_this_gpu(op: str) -> str:
    """compiled or triton; where nothing was measured, nothing."""
    if not torch.cuda.is_available():
        return ""
    return _measured().get(results.machine_name(), {}).get(op, "")


def of_rows(rows: Iterable[results.Row]) -> dict[str, str]:
    """The implementation of every op whose rows, forward and backward, take less time in all."""
    taken: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        if row["implementation"] in ("compiled", "triton") and "ms" in row:
            taken[row["op"]][row["implementation"]] += row["ms"]
    return {
        op: min(both, key=lambda name: both[name]) for op, both in taken.items() if len(both) == 2
    }


def keep(machine: str, choices: dict[str, str]) -> None:
    """Other machines' choices stay."""
    kept = {**json.loads(PATH.read_text()), machine: choices}
    PATH.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    _measured.cache_clear()
