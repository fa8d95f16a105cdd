import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidgen.bench import ops
from vidgen.bench.cases import Case, Size
from vidgen.errors import UserError
from vidgen.runtime import native
from vidgen.runtime.ops import dispatch

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TINY = Size(tokens=16, width=32, heads=2)
needs_native = pytest.mark.skipif(native.load() is None, reason=native.reason())


@needs_native
def test_a_row_is_a_rate_beside_the_copys() -> None:
    settings = ops.Settings([TINY], [torch.float32], CPU, ["gelu_tanh"], ["eager"], rounds=1)
    rows = list(ops.measure(settings))
    where = [(row["direction"], row["implementation"]) for row in rows]
    assert where == [
        (direction, name) for direction in ops.DIRECTIONS for name in ("compiled", "eager")
    ]
    for row in rows:
        moved = (2 if row["direction"] == "forward" else 3) * TINY.tokens * TINY.width * 4
        assert row["gb_per_s"] == pytest.approx(moved / row["ms"] / 1e6)
        assert row["fraction_of_copy"] == pytest.approx(row["gb_per_s"] / row["copy_gb_per_s"])


def test_the_first_round_is_not_counted() -> None:
    calls: dict[str, int] = {"a": 0, "b": 0}
    order: list[str] = []

    def work(name: str) -> None:
        calls[name] += 1
        order.append(name)

    best = ops.in_turns({"a": lambda: work("a"), "b": lambda: work("b")}, CPU, rounds=3)
    assert calls == {"a": 4, "b": 4}
    assert order == ["a", "b"] * 4
    assert all(0 < seconds < 60 for seconds in best.values())


@needs_native
def test_each_implementation_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    ran: list[str] = []

    def op(x: torch.Tensor) -> torch.Tensor:
        ran.append(dispatch.choose("gelu_tanh", x))
        return x

    case = Case(op, op, (torch.ones(2, 3),), 1)
    for implementation in ("compiled", "eager"):
        ops.call(case, "forward", implementation)()
    assert ran[0] == "compiled"
    with pytest.raises(UserError, match="triton"):
        ops.call(case, "forward", "triton")()


def under_pytest(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--quick"]
    command += [f"--benchmark-json={tmp_path / 'found.json'}", *arguments]
    # pytest-benchmark measures nothing where it sees that it runs in a worker of xdist.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=500, env=environment
    )


@needs_native
def test_a_group_is_ruler_ours_and_peers(tmp_path: Path) -> None:
    chosen = "gelu_tanh-forward-float32 and not torch.compile"
    result = under_pytest(tmp_path, "-n0", "benchmarks/bench_ops.py", "-k", chosen)
    assert result.returncode == 0, result.stdout[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    assert len({b["group"] for b in found}) == 1
    rows = [b["extra_info"] for b in found]
    assert rows[0]["implementation"] == "copy"
    assert {row["implementation"] for row in rows} >= {"copy", "compiled", "eager"}
    assert all("fraction_of_copy" in row for row in rows[1:])


@pytest.mark.parametrize("suite", ["bench_lane.py", "bench_optim.py", "parallel/bench_ring.py"])
def test_a_suite_keeps_its_rows(tmp_path: Path, suite: str) -> None:
    result = under_pytest(tmp_path, "-n0", f"benchmarks/{suite}")
    assert result.returncode == 0, result.stdout[-3000:]
    (found,) = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    assert found["extra_info"]["rows"]


def test_benchmarks_side_by_side_are_refused(tmp_path: Path) -> None:
    result = under_pytest(tmp_path, "-n2", "benchmarks/bench_lane.py")
    assert result.returncode != 0
    assert "add -n0" in result.stdout + result.stderr
