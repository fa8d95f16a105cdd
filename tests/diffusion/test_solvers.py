"""Solvers of a flow whose end is known: each is of the order it says."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from vidgen.diffusion import flow
from vidgen.diffusion.solvers import SOLVERS, steps


def end(
    solver: str, times: Sequence[float], x: Tensor, velocity: Callable[[Tensor, float], Tensor]
) -> Tensor:
    """As the solvers' module describes it."""
    for step in steps(times):
        slopes: list[Tensor] = []
        for _ in range(SOLVERS[solver].evaluations):
            slopes.append(velocity(*SOLVERS[solver].point(step, x, slopes)))
        x = x + step.length * SOLVERS[solver].slope(step, slopes)
    return x


def error(solver: str, count: int, alpha: float) -> float:
    """Of dx/dt = x cos t from x(1) = 1, over steps of uneven length."""
    one = torch.ones(1, dtype=torch.float64)
    found = end(solver, flow.timesteps(count, alpha), one, lambda x, t: x * math.cos(t))
    return abs(float(found) - math.exp(-math.sin(1.0)))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_order_of_accuracy(solver: str, alpha: float) -> None:
    coarse, fine = (error(solver, count, alpha) for count in (40, 80))
    assert math.log2(coarse / fine) == pytest.approx(SOLVERS[solver].order, abs=0.1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_is_enough_for_a_straight_path(solver: str) -> None:
    found = end(solver, [1.0, 0.0], torch.ones(3), lambda x, t: torch.full_like(x, 2.0))
    assert found.tolist() == [-1.0] * 3


def test_second_order_is_worth_its_evaluations() -> None:
    """With the same number of evaluations the error is smaller."""
    euler = error("euler", 20, 3.0)
    for solver in ("heun", "rf_taylor"):
        assert 10 * SOLVERS[solver].evaluations <= 20
        assert error(solver, 10, 3.0) < euler / 5
