"""Solvers of a flow whose end is known: each is of the order it says."""

import math

import pytest
import torch
from torch import Tensor

from vidgen.diffusion import flow
from vidgen.diffusion.solvers import SOLVERS


def end(solver: str, steps: int, alpha: float) -> float:
    """dx/dt = x cos t from x(1) = 1, over steps of uneven length."""
    found: Tensor = SOLVERS[solver].solve(
        lambda x, t, step: x * math.cos(t),
        torch.ones(1, dtype=torch.float64),
        flow.timesteps(steps, alpha),
        lambda *told: None,
    )
    return float(found)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_order_of_accuracy(solver: str, alpha: float) -> None:
    exact = math.exp(-math.sin(1.0))
    coarse, fine = (abs(end(solver, steps, alpha) - exact) for steps in (40, 80))
    assert math.log2(coarse / fine) == pytest.approx(SOLVERS[solver].order, abs=0.1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_is_enough_for_a_straight_path(solver: str) -> None:
    found = SOLVERS[solver].solve(
        lambda x, t, step: torch.full_like(x, 2.0), torch.ones(3), [1.0, 0.0], lambda *told: None
    )
    assert found.tolist() == [-1.0] * 3


def test_second_order_is_worth_its_evaluations() -> None:
    """With the same number of evaluations the error is smaller."""
    exact = math.exp(-math.sin(1.0))
    euler = abs(end("euler", 20, 3.0) - exact)
    for solver in ("heun", "rf_taylor"):
        assert sum(SOLVERS[solver].counts(10)) <= 20
        assert abs(end(solver, 10, 3.0) - exact) < euler / 5
