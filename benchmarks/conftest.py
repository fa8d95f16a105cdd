"""How the suites run under pytest-benchmark; see README.md.

`--quick` runs each at its smallest and keeps nothing under profiles/results.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vidgen.runtime.observe import results

Main = Callable[[Sequence[str]], Sequence[results.Row]]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vidgen benchmarks")
    group.addoption("--quick", action="store_true", help="the smallest sizes; nothing is kept")


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("benchmarks do not share a machine with each other: add -n0")


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


@pytest.fixture(scope="module")
def kept(
    quick: bool, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, dict[str, Any]], results.Kept]:
    def keep(suite: str, settings: dict[str, Any]) -> results.Kept:
        out = tmp_path_factory.mktemp("results") / f"{suite}.json" if quick else None
        return results.Kept(suite, settings, out)

    return keep


@pytest.fixture
def suite(benchmark: Any, quick: bool, tmp_path: Path) -> Callable[..., None]:
    """Runs a suite that takes turns by itself: its `main`, as on the command line, once. Rulers,
    peers and ours are the rows of one run; pytest-benchmark keeps them in `extra_info`."""

    def run(main: Main, name: str, short: Sequence[str]) -> None:
        arguments = [*short, "--out", str(tmp_path / f"{name}.json")] if quick else []
        benchmark.group = name
        rows = benchmark.pedantic(main, args=(arguments,), rounds=1, iterations=1)
        assert rows
        benchmark.extra_info["rows"] = [dict(row) for row in rows]

    return run
