"""The fused ops beside their ruler, a copy of as many bytes, and their peers in torch.

Ruler, peers and ours take turns, so that a machine that slows down slows all of them; the best of
each counts. The ruler copies a tensor of the tokens' size.
"""

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidgen.bench.cases import CASES, Case, Inputs, Size
from vidgen.runtime import ops
from vidgen.text_table import table

Call = Callable[[], Any]
Row = dict[str, Any]
OURS = ("compiled", "triton")
PEERS = ("eager", "torch.compile")
RULER = "copy"
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Settings:
    """What to measure: the product of sizes, dtypes and ops, `rounds` times each."""

    sizes: Sequence[Size]
    dtypes: Sequence[torch.dtype]
    device: torch.device
    names: Sequence[str] = tuple(CASES)
    peers: Sequence[str] = PEERS
    rounds: int = 7

    def described(self) -> dict[str, Any]:
        return {
            "tokens": [size.tokens for size in self.sizes],
            "width": self.sizes[0].width,
            "heads": self.sizes[0].heads,
            "device": str(self.device),
            "rounds": self.rounds,
        }


def measure(settings: Settings) -> Iterator[Row]:
    """A row for each op, direction, dtype, size and implementation, as soon as it is measured."""
    device = settings.device
    for size in settings.sizes:
        for dtype in settings.dtypes:
            for name in settings.names:
                case = CASES[name](Inputs(size, device, dtype))
                shape = {"dtype": str(dtype).removeprefix("torch."), "tokens": size.tokens}
                for direction in directions_of(case):
                    these = calls(case, direction, [*ours_on(device), *settings.peers])
                    yield from _rows(settings, case, size, dtype, direction, these, name, shape)
                torch.compiler.reset()
    if device.type == "cuda":
        yield from host_rows(settings)


def _rows(
    settings: Settings,
    case: Case,
    size: Size,
    dtype: torch.dtype,
    direction: str,
    these: dict[str, Call],
    name: str,
    shape: Row,
) -> Iterator[Row]:
    device = settings.device
    with gradients(direction):
        ruler, copied = ruler_of(size, device, dtype)
        best = in_turns({RULER: ruler} | these, device, settings.rounds)
        copy_rate = copied / best.pop(RULER)
        for implementation, taken in best.items():
            rate = bytes_of(case, direction) / taken
            row = {"op": name, "direction": direction, **shape, "implementation": implementation}
            row |= {"ms": taken * 1e3, "gb_per_s": rate / 1e9, "copy_gb_per_s": copy_rate / 1e9}
            row["fraction_of_copy"] = rate / copy_rate
            if device.type == "cuda" and implementation in OURS and direction == "forward":
                row["graph_ms"] = graph_ms(these[implementation], device)
            yield row


def ours_on(device: torch.device) -> tuple[str, ...]:
    return OURS if device.type == "cuda" else OURS[:1]


def directions_of(case: Case) -> tuple[str, ...]:
    return DIRECTIONS[:1] if case.backward_bytes is None else DIRECTIONS


def bytes_of(case: Case, direction: str) -> int:
    moved = case.forward_bytes if direction == "forward" else case.backward_bytes
    assert moved is not None
    return moved


def gradients(direction: str) -> Any:
    return torch.no_grad() if direction == "forward" else nullcontext()


def ruler_of(size: Size, device: torch.device, dtype: torch.dtype) -> tuple[Call, int]:
    """A copy of a tensor of the tokens' size, and the bytes that it reads and writes."""
    source = torch.ones(size.tokens, size.width, dtype=dtype, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.nbytes


def calls(case: Case, direction: str, implementations: Sequence[str]) -> dict[str, Call]:
    """By implementation: "compiled", "triton", "eager" or "torch.compile"."""
    return {name: call(case, direction, name) for name in implementations}


def call(case: Case, direction: str, implementation: str) -> Call:
    """One direction of a case as an implementation runs it."""
    function = {"eager": case.plain, "torch.compile": torch.compile(case.plain)}.get(
        implementation, case.op
    )
    if direction == "backward":
        return _under(implementation, _backward(function, case, implementation))
    return _under(implementation, lambda: function(*case.inputs))


def _under(implementation: str, work: Call) -> Call:
    def run() -> None:
        with ops.use(implementation) if implementation in OURS else nullcontext():
            work()

    return run


def _backward(function: Callable[..., Any], case: Case, implementation: str) -> Call:
    found: list[Tensor] = []

    def forward() -> None:
        result = function(*case.inputs)
        found.extend(result if isinstance(result, tuple) else (result,))

    _under(implementation, forward)()
    outputs = [output for output in found if output.requires_grad]
    leaves = [t for t in case.inputs if isinstance(t, Tensor) and t.requires_grad]
    grads = [torch.randn_like(output) for output in outputs]
    return lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)


def in_turns(these: dict[str, Call], device: torch.device, rounds: int) -> dict[str, float]:
    """The best seconds of each; the first round only warms up."""
    best = dict.fromkeys(these, float("inf"))
    for number in range(rounds + 1):
        for name, work in these.items():
            taken = seconds(work, device)
            if number:
                best[name] = min(best[name], taken)
    return best


def seconds(work: Call, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def graph_ms(work: Call, device: torch.device) -> float:
    """Milliseconds of a replay of the call as a CUDA graph: it can be captured, and costs so."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return in_turns({"graph": graph.replay}, device, 5)["graph"] * 1e3


def host_rows(settings: Settings) -> Iterator[Row]:
    """What a call costs the host, with inputs too small to keep the device busy."""
    given = Inputs(Size(16, 256, 2), settings.device, torch.bfloat16)
    for name in settings.names:
        case = CASES[name](given)
        for direction in directions_of(case):
            these = calls(case, direction, [*ours_on(settings.device), "eager"])
            for implementation, work in these.items():
                work()
                with gradients(direction):
                    taken = host_us(work)
                where = {"op": name, "direction": direction, "implementation": implementation}
                yield {**where, "host_us": taken}


def host_us(work: Call) -> float:
    """Microseconds the host is busy with a call, before the device has done it."""
    repeats = 200
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    taken = time.perf_counter() - start
    torch.cuda.synchronize()
    return taken / repeats * 1e6


def reuse_freed_memory() -> None:
    """Results come from memory already touched: page faults are not what is measured."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: nothing straight from the system
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: nothing back to it


def report(result: dict[str, Any]) -> list[str]:
    """A line for each op, direction, dtype and size: ours, and how many times faster than peers."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in result["rows"]:
        if "ms" in row:
            key = (row["op"], row["direction"], row["dtype"], row["tokens"])
            groups.setdefault(key, {})[row["implementation"]] = row
    lines = [["op", "", "dtype", "tokens", "runs", "ms", "GB/s", "of copy", "faster than"]]
    for (op, direction, dtype, tokens), rows in groups.items():
        for name in (name for name in rows if name in OURS):
            own = rows[name]
            peers = [f"{p} {rows[p]['ms'] / own['ms']:.2g}x" for p in rows if p not in OURS]
            figures = [f"{own['ms']:.3g}", f"{own['gb_per_s']:.3g}"]
            figures += [f"{own['fraction_of_copy']:.0%}", ", ".join(peers)]
            lines.append([op, direction, dtype, str(tokens), name, *figures])
    return [f"{result['device']}, {result['threads']} threads", *table(lines)]
