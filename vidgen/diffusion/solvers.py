"""Solvers of dx/dt = v(x, t) from noise (t = 1) to data (t = 0), behind one interface.

The caller owns the loop, so that it reads from the state to the model and back:

    for step in steps(times):
        slopes = []
        for _ in range(solver.evaluations):
            x_t, t = solver.point(step, x, slopes)
            slopes.append(v(x_t, t))
        x = x + step.length * solver.slope(step, slopes)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from vidgen.diffusion.guidance import Branches


@dataclass(frozen=True)
class Step:
    """One step of a run, from time `t` to `end`."""

    index: int
    t: float
    end: float
    last: bool

    @property
    def length(self) -> float:
        return self.end - self.t


def steps(times: Sequence[float]) -> list[Step]:
    """`times` fall from 1 to 0."""
    count = len(times) - 1
    return [Step(i, t, end, i == count - 1) for i, (t, end) in enumerate(pairwise(times))]


class Solver(Protocol):
    """Where a step evaluates the velocity, and the slope it takes from what it finds there."""

    order: int  # halving the steps' length divides the error by 2 ** order
    evaluations: int  # a step

    def point(self, step: Step, x: Tensor, slopes: Sequence[Tensor]) -> tuple[Tensor, float]:
        """State and time of the next evaluation; `slopes` are those of this step so far."""
        ...

    def slope(self, step: Step, slopes: Sequence[Tensor]) -> Tensor:
        """Of the whole step."""
        ...


class Euler:
    order, evaluations = 1, 1

    def point(self, step: Step, x: Tensor, slopes: Sequence[Tensor]) -> tuple[Tensor, float]:
        return x, step.t

    def slope(self, step: Step, slopes: Sequence[Tensor]) -> Tensor:
        return slopes[0]


class Heun:
    """The mean of the slopes at both ends of a step. The last step, long when times are shifted
    towards noise, takes its middle: at t = 0 itself nothing was trained."""

    order, evaluations = 2, 2

    def point(self, step: Step, x: Tensor, slopes: Sequence[Tensor]) -> tuple[Tensor, float]:
        if not slopes:
            return x, step.t
        if step.last:
            return x + step.length / 2 * slopes[0], (step.t + step.end) / 2
        return x + step.length * slopes[0], step.end

    def slope(self, step: Step, slopes: Sequence[Tensor]) -> Tensor:
        first, second = slopes
        return second if step.last else (first + second) / 2


class RFTaylor:
    """RF-Solver: x + h v + h^2/2 v', with v' from a half step, (v_half - v) / (h/2).

    The terms in v cancel, so that a step is h v_half: the midpoint rule.
    """

    order, evaluations = 2, 2

    def point(self, step: Step, x: Tensor, slopes: Sequence[Tensor]) -> tuple[Tensor, float]:
        if not slopes:
            return x, step.t
        half = step.length / 2
        return x + half * slopes[0], step.t + half

    def slope(self, step: Step, slopes: Sequence[Tensor]) -> Tensor:
        return slopes[1]


SOLVERS: dict[str, Solver] = {"euler": Euler(), "heun": Heun(), "rf_taylor": RFTaylor()}


def passes_per_step(branches: Sequence[Branches], solver: str = "euler") -> list[int]:
    """Passes of the model in each step of a run: evaluations times guidance branches."""
    return [SOLVERS[solver].evaluations * len(step.weights) for step in branches]


def evaluation_times(times: Sequence[float], solver: str = "euler") -> list[tuple[float, int]]:
    """(time, step) of every velocity a run evaluates, in order."""
    x = torch.zeros(())
    return [
        (SOLVERS[solver].point(step, x, [x] * number)[1], step.index)
        for step in steps(times)
        for number in range(SOLVERS[solver].evaluations)
    ]
