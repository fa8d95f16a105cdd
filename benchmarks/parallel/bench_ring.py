"""One rank of a ring on one device, its hops local copies: what a ring costs beside one kernel.

    python benchmarks/parallel/bench_ring.py         what this device does in a minute
    python benchmarks/parallel/bench_ring.py --tokens 76544 --parts 4

All parts hold the same keys, so that a copy of what is here is what would arrive. A ring of P ranks
takes P times one rank's time of all its devices together; that is compared with one device that
attends to everything at once. The rulers are that kernel and the copy of a hop alone.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vidgen.runtime.attention import attention
from vidgen.runtime.attention.choice import choose_for_blocks
from vidgen.runtime.observe import results
from vidgen.runtime.parallel.ring import attend_over


class CopyHop:
    """Copied on a stream of its own, as a transport would."""

    def __init__(self, here: Tensor, there: Tensor, stream: Any) -> None:
        self._there, self._stream, self._here = there, stream, here
        if stream is None:
            there.copy_(here)
            return
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            there.copy_(here, non_blocking=True)
        here.record_stream(stream)
        there.record_stream(stream)

    def wait(self) -> Tensor:
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
        return self._there


class CopyRing:
    """The ring as its first rank sees it; every rank's part is as long."""

    rank = 0

    def __init__(self, parts: int, length: int, device: torch.device) -> None:
        self.lengths = (length,) * parts
        self._stream = torch.cuda.Stream() if device.type == "cuda" else None

    def hop(self, here: Tensor, there: Tensor) -> CopyHop:
        return CopyHop(here, there, self._stream)


def seconds(call: Callable[[], Any], device: torch.device, rounds: int) -> float:
    best = float("inf")
    for attempt in range(rounds + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if attempt:
            best = min(best, time.perf_counter() - start)
    return best


def measure(
    tokens: int, parts: int, heads: int, head_dim: int, device: torch.device, rounds: int
) -> dict[str, Any]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    length = tokens // parts

    def leaves(count: int) -> list[Tensor]:
        shape = (1, count, heads, head_dim)
        return [torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(3)]

    def both_ways(attend: Callable[..., Tensor], qkv: list[Tensor]) -> tuple[float, float]:
        out = attend(*qkv)
        gradient = torch.randn_like(out)
        forward = seconds(lambda: attend(*qkv), device, rounds)
        backward = seconds(
            lambda: torch.autograd.grad(out, qkv, gradient, retain_graph=True), device, rounds
        )
        return forward, backward

    whole = both_ways(attention, leaves(tokens))
    ring = CopyRing(parts, length, device)
    part = leaves(length)
    one = both_ways(lambda q, k, v: attend_over(ring, q, k, v), part)
    with torch.no_grad():  # every part holds the same keys: the same softmax as over one of them
        difference = (attend_over(ring, *part) - attention(*part)).abs().max().item()
    here = torch.randn(2, 1, length, heads, head_dim, device=device).to(dtype)
    copy = seconds(lambda: CopyHop(here, torch.empty_like(here), None), device, rounds)
    flops = 4 * tokens**2 * heads * head_dim
    return {
        "tokens": tokens,
        "parts": parts,
        "heads": heads,
        "head_dim": head_dim,
        "dtype": str(dtype).removeprefix("torch."),
        "backend": choose_for_blocks(part[0], length, gradient=True).name,
        "kernel_forward_ms": whole[0] * 1e3,
        "kernel_backward_ms": whole[1] * 1e3,
        "kernel_tflops": 3.5 * flops / sum(whole) / 1e12,
        "hop_forward_ms": one[0] / parts * 1e3,
        "hop_backward_ms": one[1] / parts * 1e3,
        "copy_of_a_hop_ms": copy * 1e3,
        "forward_over_kernel": parts * one[0] / whole[0],
        "backward_over_kernel": parts * one[1] / whole[1],
        "total_over_kernel": parts * sum(one) / sum(whole),
        "largest_difference": difference,
    }


def main(argv: Sequence[str] | None = None) -> Sequence[results.Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    gpu = torch.cuda.is_available()
    parser.add_argument("--tokens", type=int, default=76_544 if gpu else 2_048)
    parser.add_argument("--parts", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--heads", type=int, default=24 if gpu else 4)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="where the results go (default: the machine's folder)")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if gpu else "cpu")
    rows = results.Kept("parallel_ring", out=args.out)
    for parts in args.parts:
        rows.add(measure(args.tokens, parts, args.heads, args.head_dim, device, args.rounds))
    print(results.table(rows))
    print(rows.save())
    return rows


QUICK = ("--tokens", "256", "--parts", "2", "--heads", "1", "--rounds", "1")


def test_parallel_ring(suite: Callable[..., None]) -> None:
    suite(main, "parallel_ring", QUICK)


if __name__ == "__main__":
    main()
