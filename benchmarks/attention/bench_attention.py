"""Attention: every backend that runs here, beside a large matmul of the same run.

    python benchmarks/attention/bench_attention.py            all lengths of this device
    python benchmarks/attention/bench_attention.py --short    the first two

FLOPs are 4 L^2 D a head forward and 2.5 times that backward (the scores are made anew). The ruler
is the best of the large matmuls in bf16 and fp32: on a CPU without bf16 arithmetic that is fp32.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vidgen.runtime.attention import BlockMask, attention
from vidgen.runtime.attention.backends import Needs
from vidgen.runtime.attention.choice import choose
from vidgen.runtime.attention.mask import K_BLOCK, Q_BLOCK
from vidgen.runtime.attention.soundness import fault
from vidgen.runtime.attention.table import TABLE
from vidgen.runtime.observe import results

HEADS, HEAD_DIM = 24, 128
LENGTHS = {"cpu": [2048], "cuda": [2816, 8960, 19136, 76544]}
DTYPES = {"cpu": [torch.bfloat16, torch.float32], "cuda": [torch.bfloat16]}


def seconds(call: Callable[[], Any], device: str, rounds: int = 3) -> float:
    """The best of some calls after one to warm up; of a slow call, the first counts."""
    best = float("inf")
    for attempt in range(rounds + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - start
        if attempt or took > 3:
            best = min(best, took)
        if took > 3:
            break
    return best


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    rows, inner, columns = (2048, 3072, 2048) if device == "cpu" else (8192, 8192, 8192)
    a = torch.randn(rows, inner, device=device).to(dtype)
    b = torch.randn(inner, columns, device=device).to(dtype)
    return 2 * rows * inner * columns / seconds(lambda: a @ b, device)


class Peak:
    """Bytes a call needs beside what is there already, at its peak."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __enter__(self) -> "Peak":
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
            self.before = self._resident("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        after = (
            torch.cuda.max_memory_allocated() if self.device == "cuda" else self._resident("VmHWM")
        )
        self.mib = (after - self.before) / 2**20

    @staticmethod
    def _resident(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def half_mask(length: int, device: str) -> BlockMask:
    """Every other block of keys."""
    blocks = torch.zeros(
        1, 1, -(-length // Q_BLOCK), -(-length // K_BLOCK), dtype=torch.bool, device=device
    )
    blocks[..., ::2] = True
    return BlockMask(blocks)


def measure(
    name: str, device: str, dtype: torch.dtype, length: int, ruler: float, backward: bool
) -> dict[str, Any]:
    q, k, v, grad = (
        torch.randn(1, length, HEADS, HEAD_DIM, device=device).to(dtype) for _ in range(4)
    )
    flops = 4 * length**2 * HEADS * HEAD_DIM

    def forward(mask: BlockMask | None = None) -> Any:
        with torch.no_grad():
            return attention(q, k, v, mask=mask, backend=name)

    with Peak(device) as peak:
        forward()
    took = seconds(forward, device)
    row: dict[str, Any] = {
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "length": length,
        "backend": name,
        "forward_ms": took * 1e3,
        "forward_tflop_per_s": flops / took / 1e12,
        "forward_fraction_of_matmul": flops / took / ruler,
        "forward_peak_mib": peak.mib,
    }
    if name in ("native", "flex"):
        masked = half_mask(length, device)
        row["half_masked_fraction_of_time"] = seconds(lambda: forward(masked), device) / took
    if backward:
        leaves = [x.requires_grad_() for x in (q, k, v)]
        with Peak(device) as peak:
            out = attention(*leaves, backend=name)
            torch.autograd.grad(out, leaves, grad)
        out = attention(*leaves, backend=name)
        back = seconds(lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True), device)
        row |= {
            "backward_ms": back * 1e3,
            "backward_tflop_per_s": 2.5 * flops / back / 1e12,
            "backward_fraction_of_matmul": 2.5 * flops / back / ruler,
            "both_ms": (took + back) * 1e3,
            "both_peak_mib": peak.mib,
        }
    return row


def rows_of(device: str, dtype: torch.dtype, length: int, kept: results.Kept) -> None:
    """A row a backend; of several lengths and dtypes, `kept` holds all."""
    rates = {
        f"matmul_{name}_tflop_per_s": matmul_rate(device, matmul) / 1e12
        for name, matmul in (("bf16", torch.bfloat16), ("fp32", torch.float32))
    }
    ruler = max(rates.values()) * 1e12
    rows: list[dict[str, Any]] = []
    for backend in TABLE:
        sampling = Needs(device, dtype, HEAD_DIM, False, False, frozenset())
        training = Needs(device, dtype, HEAD_DIM, True, False, frozenset())
        if backend.last_resort or backend.refusal(sampling):
            continue
        if backend.exact and (why := fault(backend, sampling)):
            print(f"{backend.name} is left out: {why}")
            continue
        backward = backend.refusal(training) is None and not fault(backend, training)
        try:
            found = measure(backend.name, device, dtype, length, ruler, backward) | rates
        except torch.OutOfMemoryError:
            found = {
                "device": device,
                "dtype": str(dtype).removeprefix("torch."),
                "length": length,
                "backend": backend.name,
                "failed": "out of memory",
            }
        kept.add(found)
        rows.append(kept[-1])
    shape = (1, length, length, HEADS)
    for gradient, figure in ((False, "forward_ms"), (True, "both_ms")):
        chosen = choose(Needs(device, dtype, HEAD_DIM, gradient, False, frozenset()), shape=shape)
        able = [row for row in rows if figure in row and row["backend"] != "sage"]
        if not able:
            continue
        best = min(row[figure] for row in able)
        for row in able:
            if row["backend"] == chosen.name:
                row["auto_" + figure.replace("_ms", "_over_best")] = row[figure] / best
    kept.save()


def main(argv: Sequence[str] | None = None) -> Sequence[results.Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the first two lengths only")
    parser.add_argument("--lengths", type=int, nargs="+", help="other lengths")
    parser.add_argument("--out", help="where the JSON goes")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lengths = args.lengths or LENGTHS[device][: 2 if args.short else None]
    settings = {"batch": 1, "heads": HEADS, "head_dim": HEAD_DIM}
    rows = results.Kept("attention", settings, args.out)
    for dtype in DTYPES[device]:
        for length in lengths:
            rows_of(device, dtype, length, rows)
    print(results.table(rows))
    print("kept as", rows.save())
    return rows


QUICK = ("--lengths", "128")


def test_attention(suite: Callable[..., None]) -> None:
    suite(main, "attention", QUICK)


if __name__ == "__main__":
    main()
