"""Integrating the learned, guided velocity from noise to data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidgen.diffusion.guidance import Branches
from vidgen.diffusion.solvers import SOLVERS, Watch


@dataclass(frozen=True)
class Point:
    """One guided velocity that a solver asks for, and the branches it takes."""

    number: int  # counted over the run: a solver may ask more often than there are steps
    step: int
    t: float
    branches: tuple[str, ...]


# (point, x_BVD) -> the velocity of each of its branches
Evaluate = Callable[[Point, Tensor], Mapping[str, Tensor]]
Progress = Callable[[int, int], None]  # steps done, steps in all


def integrate(
    evaluate: Evaluate,
    noise_BVD: Tensor,
    times: Sequence[float],
    branches: Sequence[Branches],
    *,
    solver: str = "euler",
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """`times` fall from 1 to 0; `branches` are those of each step; the state is kept in fp32."""
    x = noise_BVD.float()
    steps = [step.on(x) for step in branches]
    asked = 0

    def velocity(x: Tensor, t: float, step: int) -> Tensor:
        nonlocal asked
        point = Point(asked, step, t, tuple(steps[step].weights))
        asked += 1
        found = evaluate(point, x)
        return steps[step].combine({name: found[name].float() for name in point.branches})

    def told(done: int, t: float, x: Tensor, v: Tensor) -> None:
        if progress is not None:
            progress(done, len(steps))
        if watch is not None:
            watch(done, t, x, v)

    if len(times) != len(branches) + 1:
        raise ValueError(f"{len(times)} times for {len(branches)} steps")
    return SOLVERS[solver].solve(velocity, x, times, told)


def evaluations(branches: Sequence[Branches], solver: str = "euler") -> int:
    """How many passes of the model a run takes."""
    counts = SOLVERS[solver].counts(len(branches))
    return sum(n * len(step.weights) for n, step in zip(counts, branches, strict=True))


def passes(times: Sequence[float], solver: str = "euler") -> list[tuple[float, int]]:
    """(time, step) of every guided velocity a run asks for, in order."""
    asked: list[tuple[float, int]] = []

    def velocity(x: Tensor, t: float, step: int) -> Tensor:
        asked.append((t, step))
        return x

    SOLVERS[solver].solve(velocity, torch.zeros(()), times, lambda *told: None)
    return asked
