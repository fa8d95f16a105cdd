"""Solvers of dx/dt = v(x, t) from noise (t = 1) to data (t = 0), behind one interface."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

Velocity = Callable[[Tensor, float, int], Tensor]  # state, time, number of the step -> slope
# Told after each step: steps done, the time reached, the state there and the last slope.
Watch = Callable[[int, float, Tensor, Tensor], None]
Solve = Callable[[Velocity, Tensor, Sequence[float], Watch], Tensor]


@dataclass(frozen=True)
class Solver:
    """`solve` may ask for the velocity as often as it likes, and says how often in `counts`."""

    solve: Solve
    order: int  # halving the steps' length divides the error by 2 ** order
    counts: Callable[[int], list[int]]  # steps -> evaluations in each of them


def _euler(velocity: Velocity, x: Tensor, times: Sequence[float], watch: Watch) -> Tensor:
    for step, (t, after) in enumerate(pairwise(times)):
        v = velocity(x, t, step)
        x = x + (after - t) * v
        watch(step + 1, after, x, v)
    return x


def _heun(velocity: Velocity, x: Tensor, times: Sequence[float], watch: Watch) -> Tensor:
    """The mean of the slopes at both ends of a step. The last step, long when times are shifted
    towards noise, takes its middle: at t = 0 itself nothing was trained."""
    last = len(times) - 2
    for step, (t, after) in enumerate(pairwise(times)):
        v = velocity(x, t, step)
        if step < last:
            v = (v + velocity(x + (after - t) * v, after, step)) / 2
        else:
            v = velocity(x + (after - t) / 2 * v, (t + after) / 2, step)
        x = x + (after - t) * v
        watch(step + 1, after, x, v)
    return x


def _taylor(velocity: Velocity, x: Tensor, times: Sequence[float], watch: Watch) -> Tensor:
    """RF-Solver: x + h v + h^2/2 v', with v' from a half step, (v_half - v) / (h/2).

    The terms in v cancel, so that a step is h v_half: the midpoint rule.
    """
    for step, (t, after) in enumerate(pairwise(times)):
        half = (after - t) / 2
        v = velocity(x + half * velocity(x, t, step), t + half, step)
        x = x + 2 * half * v
        watch(step + 1, after, x, v)
    return x


SOLVERS = {
    "euler": Solver(_euler, 1, lambda steps: [1] * steps),
    "heun": Solver(_heun, 2, lambda steps: [2] * steps),
    "rf_taylor": Solver(_taylor, 2, lambda steps: [2] * steps),
}
