"""Integrating the learned velocity from noise to data."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vidgen.diffusion.guidance import Branches

# (branch, x_BVD, t) -> velocity of that branch
Evaluate = Callable[[str, Tensor, float], Tensor]
Progress = Callable[[int, int], None]  # steps done, steps in all


def euler(
    evaluate: Evaluate,
    noise_BVD: Tensor,
    times: Sequence[float],
    branches: Sequence[Branches],
    progress: Progress | None = None,
) -> Tensor:
    """One velocity a step, `times` falling from 1 to 0; the state is kept in fp32."""
    x = noise_BVD.float()
    for i, step in enumerate(branches):
        velocity = {name: evaluate(name, x, times[i]).float() for name in step.weights}
        weights = {
            name: w.to(x.device, x.dtype) if isinstance(w, torch.Tensor) else w
            for name, w in step.weights.items()
        }
        x = x + (times[i + 1] - times[i]) * Branches(weights).combine(velocity)
        if progress is not None:
            progress(i + 1, len(branches))
    return x


SOLVERS = {"euler": euler}
