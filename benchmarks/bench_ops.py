"""The fused ops, forward and backward: a group for each op, direction, dtype and size, in which a
copy, the ruler, comes first, then ours and their peers in torch.

    pytest benchmarks/bench_ops.py -n0
    pytest benchmarks/bench_ops.py -n0 -k "gelu_tanh and float32" --benchmark-json=gelu.json

`vidgen bench ops` prints the same cases and takes other sizes.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch

from vidgen.bench import ops
from vidgen.bench.cases import CASES, Case, Inputs, Size

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
TOKENS = (8960, 76544) if CUDA else (4096,)
WIDTH, HEADS = 3072, 24
TINY = Size(64, 128, 2)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
IMPLEMENTATIONS = (ops.RULER, *ops.ours_on(DEVICE), *ops.PEERS)
ROUNDS = 7


@cache
def directions(name: str) -> tuple[str, ...]:
    return ops.directions_of(CASES[name](Inputs(TINY, torch.device("cpu"), torch.float32)))


@pytest.fixture(scope="module")
def rows(kept: Callable[..., Any]) -> Any:
    ops.reuse_freed_memory()
    settings = {"width": WIDTH, "heads": HEADS, "device": str(DEVICE), "rounds": ROUNDS}
    return kept("ops", settings)


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, quick: bool) -> Iterator[tuple[Case, Size, torch.dtype]]:
    """One set of inputs for a group; released before the next."""
    name, dtype, tokens = request.param
    size = TINY if quick else Size(tokens, WIDTH, HEADS)
    yield CASES[name](Inputs(size, DEVICE, DTYPES[dtype])), size, DTYPES[dtype]
    torch.compiler.reset()


def groups() -> list[Any]:
    return [
        pytest.param((name, dtype, tokens), direction, id=f"{name}-{direction}-{dtype}-{tokens}")
        for tokens in TOKENS
        for dtype in DTYPES
        for name in CASES
        for direction in directions(name)
    ]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("case", "direction"), groups(), indirect=["case"])
def test_op(
    benchmark: Any,
    rows: Any,
    quick: bool,
    request: pytest.FixtureRequest,
    case: tuple[Case, Size, torch.dtype],
    direction: str,
    implementation: str,
) -> None:
    given, size, dtype = case
    name = request.node.callspec.params["case"][0]
    typed = str(dtype).removeprefix("torch.")
    benchmark.group = f"{name} {direction} {typed} {size.tokens} tokens"
    with ops.gradients(direction):
        if implementation == ops.RULER:
            work, moved = ops.ruler_of(size, DEVICE, dtype)
        else:
            work = ops.call(given, direction, implementation)
            moved = ops.bytes_of(given, direction)

        def finished() -> None:
            work()
            if CUDA:
                torch.cuda.synchronize()

        benchmark.pedantic(finished, rounds=1 if quick else ROUNDS, iterations=1, warmup_rounds=1)
    taken = benchmark.stats.stats.min
    where = {"op": name, "direction": direction, "dtype": typed, "tokens": size.tokens}
    row = {**where, "implementation": implementation}
    row |= {"ms": taken * 1e3, "gb_per_s": moved / taken / 1e9}
    if implementation != ops.RULER:
        row |= of_ruler(rows, where, row["gb_per_s"])
    benchmark.extra_info.update(row)
    rows.add(row)


def of_ruler(measured: list[Any], where: dict[str, Any], rate: float) -> dict[str, float]:
    """Beside the copy of the same group; without one, where -k left it out, nothing."""
    for row in measured:
        if row["implementation"] == ops.RULER and where.items() <= row.items():
            return {"copy_gb_per_s": row["gb_per_s"], "fraction_of_copy": rate / row["gb_per_s"]}
    return {}


def test_what_a_call_costs_the_host(rows: Any) -> None:
    if not CUDA:
        pytest.skip("on a CPU the host does the work itself")
    settings = ops.Settings(sizes=[TINY], dtypes=[torch.bfloat16], device=DEVICE)
    for row in ops.host_rows(settings):
        rows.add(row)
