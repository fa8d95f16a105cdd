"""An optimizer step beside a copy of the bytes it must move, an update in place, and its peers.

    python benchmarks/bench_optim.py              # --millions 200 on a GPU

Ours: optim.states fp32 (torch's fused AdamW, then the moving average) and bf16 (one pass over all).
Peers: torch's AdamW over lists (foreach), and torchao's 8-bit AdamW where it is installed.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from vidgen.errors import UserError
from vidgen.recipe.schema import OptimConfig
from vidgen.runtime import ops
from vidgen.runtime.observe import results
from vidgen.train.optim.optimizer import EMA, build_optimizer, update_weights_and_ema

WIDTH = 3072
BYTES = {"fp32": 16, "bf16": 8, "8bit": 4}  # read and written of both moments, each element
WEIGHTS, GRADIENT, AVERAGE = 8, 4, 8


def parameters(elements: int, device: torch.device) -> dict[str, nn.Parameter]:
    """Matrices such as a block has, with their gradients."""
    rows = max(1, elements // WIDTH // 4)
    named = {}
    for name in "abcd":
        named[name] = nn.Parameter(torch.randn(rows, WIDTH, device=device))
        named[name].grad = torch.randn(rows, WIDTH, device=device)
    return named


def stepper(
    states: Any, elements: int, device: torch.device, average: bool
) -> tuple[Callable[[], None], int]:
    """One step as training takes it, and the bytes it must move."""
    named = parameters(elements, device)
    ema = EMA(named, 0.9999) if average else None
    optimizer = build_optimizer(named.values(), OptimConfig(states=states, eps=1e-8))
    step = 0

    def call() -> None:
        nonlocal step
        step += 1
        update_weights_and_ema(optimizer, ema, step)

    count = sum(p.numel() for p in named.values())
    each = WEIGHTS + GRADIENT + BYTES[states] + (AVERAGE if average else 0)
    return call, count * each


def by_lists(elements: int, device: torch.device) -> tuple[Callable[[], None], int]:
    named = parameters(elements, device)
    optimizer = torch.optim.AdamW(named.values(), foreach=True)
    count = sum(p.numel() for p in named.values())
    return optimizer.step, count * (WEIGHTS + GRADIENT + BYTES["fp32"])


def median_seconds(call: Callable[[], Any], device: torch.device, rounds: int) -> float:
    taken = []
    for _ in range(rounds + 2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def copy_rate(elements: int, device: torch.device, rounds: int) -> float:
    """Bytes read and written a second, by a copy on the device."""
    here, there = (torch.ones(4 * elements, device=device) for _ in range(2))
    return 2 * here.nbytes / median_seconds(lambda: there.copy_(here), device, rounds)


def in_place_rate(elements: int, device: torch.device, rounds: int) -> float:
    """The same of a sum in place: a CPU's copy also reads what it is about to overwrite."""
    here = torch.ones(4 * elements, device=device)
    return 2 * here.nbytes / median_seconds(lambda: here.add_(1), device, rounds)


def main(argv: Sequence[str] | None = None) -> Sequence[results.Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, help="elements updated (default: 16, GPU: 200)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", help="write the results here")
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    millions = options.millions or (200 if device.type == "cuda" else 16)
    elements = int(millions * 1e6)

    chosen = next(row for row in ops.table() if row.op == "adamw" and row.chosen)
    rows = results.Kept("optim", {"adamw": chosen.implementation}, options.out)
    rate = copy_rate(elements, device, options.rounds)
    in_place = in_place_rate(elements, device, options.rounds)
    cases: list[tuple[str, bool, Callable[[], tuple[Callable[[], None], int]]]] = [
        ("fp32", False, lambda: stepper("fp32", elements, device, False)),
        ("fp32", True, lambda: stepper("fp32", elements, device, True)),
        ("bf16", False, lambda: stepper("bf16", elements, device, False)),
        ("bf16", True, lambda: stepper("bf16", elements, device, True)),
        ("torch foreach", False, lambda: by_lists(elements, device)),
        ("8bit", False, lambda: stepper("8bit", elements, device, False)),
    ]
    for name, average, make in cases:
        try:
            call, moved = make()
        except UserError as missing:
            rows.add({"states": name, "moving_average": average, "skipped": str(missing)})
            continue
        seconds = median_seconds(call, device, options.rounds)
        rows.add(
            {
                "states": name,
                "moving_average": average,
                "millions": millions,
                "ms": seconds * 1e3,
                "bytes_per_parameter": moved / (elements // WIDTH // 4 * 4 * WIDTH),
                "gb_per_s": moved / seconds / 1e9,
                "copy_gb_per_s": rate / 1e9,
                "of_copy": moved / seconds / rate,
                "in_place_gb_per_s": in_place / 1e9,
                "of_in_place": moved / seconds / in_place,
            }
        )
        del call
    print(results.table(rows))
    print(f"kept in {rows.save()}")
    return rows


QUICK = ("--millions", "0.1", "--rounds", "1")


def test_optim(suite: Callable[..., None]) -> None:
    suite(main, "optim", QUICK)


if __name__ == "__main__":
    main()
