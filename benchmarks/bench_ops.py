"""The fused ops, forward and backward, beside a copy of as many bytes, eager torch, torch.compile.

    python benchmarks/bench_ops.py                             # the CPU at 4,096 tokens
    python benchmarks/bench_ops.py --tokens 8960 76544         # a GPU: CUDA and Triton
    python benchmarks/bench_ops.py --op gelu_tanh --dtype bfloat16
    python benchmarks/bench_ops.py --tokens 8960 76544 --choose    # auto takes the faster

The ruler, the peers and ours take turns, so that a machine that slows down slows all of them; the
best of each is kept. Bytes are those that must be read and written, each tensor once, and the ruler
copies a tensor of the tokens' size.
"""

import argparse
import ctypes
import importlib
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from ops.case import Case, Size
from torch import Tensor

from vidgen.runtime import ops
from vidgen.runtime.observe import results
from vidgen.runtime.ops import faster

NAMES = sorted(path.stem[6:] for path in (Path(__file__).parent / "ops").glob("bench_*.py"))
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
Call = Callable[[], Any]


def reuse_freed_memory() -> None:
    """Results come from memory already touched: page faults are not what is measured."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: nothing straight from the system
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: nothing back to it


def under(implementation: str, call: Call) -> Call:
    """The call as one of our implementations runs it."""

    def run() -> None:
        with ops.use(implementation) if implementation in ("compiled", "triton") else nullcontext():
            call()

    return run


def calls(case: Case, device: torch.device, peers: list[str]) -> dict[str, dict[str, Call]]:
    """By direction, then by implementation."""
    ours = ["compiled", "triton"] if device.type == "cuda" else ["compiled"]
    functions = dict.fromkeys(ours, case.op) | {"eager": case.plain}
    functions["torch.compile"] = torch.compile(case.plain)
    found: dict[str, dict[str, Call]] = {"forward": {}, "backward": {}}
    for name in [*ours, *peers]:
        function = functions[name]
        found["forward"][name] = under(name, lambda f=function: f(*case.inputs))
        if case.backward_bytes is not None:
            found["backward"][name] = under(name, backward(function, case, name))
    return found


def backward(function: Callable[..., Any], case: Case, name: str) -> Call:
    outputs: list[Tensor] = []

    def forward() -> None:
        result = function(*case.inputs)
        outputs.extend(result if isinstance(result, tuple) else (result,))

    under(name, forward)()
    leaves = [t for t in case.inputs if isinstance(t, Tensor) and t.requires_grad]
    grads = [torch.randn_like(output) for output in outputs]
    return lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)


def seconds(call: Call, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(these: dict[str, Call], device: torch.device, rounds: int) -> dict[str, float]:
    best = dict.fromkeys(these, float("inf"))
    for number in range(rounds + 1):  # the first only warms up
        for name, call in these.items():
            taken = seconds(call, device)
            if number:
                best[name] = min(best[name], taken)
    return best


def host_us(call: Call, device: torch.device) -> float:
    """Microseconds the host is busy with a call, before the device has done it."""
    repeats = 200
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    taken = time.perf_counter() - start
    torch.cuda.synchronize()
    return taken / repeats * 1e6


def graph_ms(call: Call, device: torch.device) -> float:
    """Milliseconds of a replay of the call as a CUDA graph: it can be captured, and costs so."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return in_turns({"graph": graph.replay}, device, 5)["graph"] * 1e3


def measure(
    name: str, size: Size, device: torch.device, dtype: torch.dtype, args: Any
) -> list[Any]:
    module = importlib.import_module(f"ops.bench_{name}")
    case: Case = module.case(size, device, dtype)
    source = torch.empty(size.tokens, size.width, dtype=dtype, device=device).fill_(1)
    target = torch.empty_like(source)
    rows = []
    for direction, these in calls(case, device, args.peers).items():
        moved = case.forward_bytes if direction == "forward" else case.backward_bytes
        if moved is None:
            continue
        ruler: dict[str, Call] = {"copy": lambda: target.copy_(source)}
        with torch.no_grad() if direction == "forward" else nullcontext():
            best = in_turns(ruler | these, device, args.rounds)
            copied = 2 * source.nbytes / best.pop("copy")
            for implementation, taken in best.items():
                row = {
                    "op": name,
                    "direction": direction,
                    "dtype": str(dtype).removeprefix("torch."),
                    "tokens": size.tokens,
                    "implementation": implementation,
                    "ms": taken * 1e3,
                    "gb_per_s": moved / taken / 1e9,
                    "copy_gb_per_s": copied / 1e9,
                    "fraction_of_copy": moved / taken / copied,
                }
                ours = implementation in ("compiled", "triton")
                if device.type == "cuda" and ours and direction == "forward":
                    row["graph_ms"] = graph_ms(these[implementation], device)
                rows.append(row)
    torch.compiler.reset()
    return rows


def host_rows(device: torch.device) -> list[dict[str, Any]]:
    """What a call costs the host, of inputs too small to keep the device busy."""
    rows = []
    for name in NAMES:
        module = importlib.import_module(f"ops.bench_{name}")
        case = module.case(Size(16, 256, 2), device, torch.bfloat16)
        for direction, these in calls(case, device, ["eager"]).items():
            for implementation, call in these.items():
                call()
                with torch.no_grad() if direction == "forward" else nullcontext():
                    rows.append(
                        {
                            "op": name,
                            "direction": direction,
                            "implementation": implementation,
                            "host_us": host_us(call, device),
                        }
                    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096])
    parser.add_argument("--width", type=int, default=3072)
    parser.add_argument("--heads", type=int, default=24)
    parser.add_argument("--op", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--peers", nargs="*", choices=["eager", "torch.compile"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--choose", action="store_true", help="keep the faster of CUDA and Triton in faster.json"
    )
    parser.add_argument("--out", help="where to keep the results")
    args = parser.parse_args()
    args.peers = ["eager", "torch.compile"] if args.peers is None else args.peers
    device = torch.device(args.device)
    reuse_freed_memory()
    rows = []
    for tokens in args.tokens:
        size = Size(tokens, args.width, args.heads)
        for dtype in args.dtype:
            for name in args.op:
                rows += measure(name, size, device, DTYPES[dtype], args)
    if device.type == "cuda":
        rows += host_rows(device)
    print(results.table(rows))
    settings = {"width": args.width, "heads": args.heads, "device": str(device)}
    if args.choose:
        faster.keep(results.machine_name(), faster.of_rows(rows))
    print(results.write("ops", rows, settings=settings, out=args.out))


if __name__ == "__main__":
    main()
