"""Lanes beside plain copies: bandwidth both ways, overlap with computation, the cost of a lease.

    python benchmarks/bench_lane.py              # --short: a few seconds

On a GPU the ruler is torch's own copy between the device and memory that torch pinned. Without one
a lane copies from host to host, and the ruler is torch's copy_ of the same bytes. File input and
output is measured by bench_checkpoint.py.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from vidgen.runtime.memory import HOST, Arena, Lane
from vidgen.runtime.memory.lane import current
from vidgen.runtime.observe import results
from vidgen.runtime.observe.hardware import best_time

MATRIX, PRODUCTS = 8192, 24  # of the loop that copies run beside


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(calls: dict[str, Callable[[], Any]], device: torch.device, rounds: int) -> Any:
    """The median seconds of each, in turns, so that what disturbs one disturbs all."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            settle(device)
            start = time.perf_counter()
            call()
            settle(device)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def copies(device: torch.device, size: int, rounds: int) -> Iterator[dict[str, Any]]:
    arena = Arena(size, name="bench")
    lane = Lane(device)
    lease = arena.lease(size)
    ours = lease.tensor((size,))
    ours.fill_(1)
    plain = torch.ones(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.ones(size, dtype=torch.uint8, device=device)

    def by_lane(src: torch.Tensor, dst: torch.Tensor) -> None:
        lane.copy(src, dst, producer=current(device), lease=lease).wait_on(current(device))

    for way in ("to the device", "to the host"):
        to_device = way == "to the device"
        pairs = [(memory, there) if to_device else (there, memory) for memory in (ours, plain)]
        seconds = alternate(
            {
                "lane": lambda pairs=pairs: by_lane(*pairs[0]),
                "ruler": lambda pairs=pairs: pairs[1][1].copy_(pairs[1][0], non_blocking=True),
            },
            device,
            rounds,
        )
        row = {
            "what": f"copy {way}",
            "mb": size / 1e6,
            "gb_per_s": size / seconds["lane"] / 1e9,
            "ruler_gb_per_s": size / seconds["ruler"] / 1e9,
            "of_ruler": seconds["ruler"] / seconds["lane"],
        }
        if device.type == "cuda":
            row |= overlap(lane, lease, pairs[0], device, rounds)
        yield row
    lease.give_back()
    arena.close()


def overlap(lane: Any, lease: Any, pair: Any, device: torch.device, rounds: int) -> dict[str, Any]:
    """A loop of matrix products alone, and with copies beside it for about as long."""
    a = torch.randn(MATRIX, MATRIX, device=device, dtype=torch.bfloat16)

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, a)

    alone = best_time(products, device, rounds)
    once = best_time(lambda: pair[1].copy_(pair[0], non_blocking=True), device, 2)
    count = max(1, round(0.8 * alone / once))

    def both() -> None:
        for _ in range(count):
            ticket = lane.copy(*pair, producer=HOST, lease=lease)
        products()
        ticket.wait_on(current(device))

    together = best_time(both, device, rounds)
    return {"matmul_ms": alone * 1e3, "with_copies_ms": together * 1e3, "copies": count}


def leases(count: int) -> dict[str, Any]:
    arena = Arena(1 << 20, pinned=False)
    start = time.perf_counter()
    for _ in range(count):
        arena.lease(4096).give_back()
    seconds = time.perf_counter() - start
    arena.close()
    return {"what": "take a lease and return it", "us": seconds / count * 1e6}


def main(argv: Sequence[str] | None = None) -> Sequence[results.Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--mib", type=int, help="of a copy; 512 on a GPU, 128 without")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--short", action="store_true", help="small sizes")
    parser.add_argument("--out", help="the JSON to write")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    size = (args.mib or (16 if args.short else 512 if device.type == "cuda" else 128)) << 20
    rounds = 3 if args.short else args.rounds
    rows = results.Kept("lane", {"device": str(device)}, args.out)
    for row in copies(device, size, rounds):
        rows.add(row)
    rows.add(leases(200 if args.short else 20_000))
    print(results.table(rows))
    print(rows.save())
    return rows


QUICK = ("--short",)


def test_lane(suite: Callable[..., None]) -> None:
    suite(main, "lane", QUICK)


if __name__ == "__main__":
    main()
