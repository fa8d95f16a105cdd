"""How far a step's loss is from the usual one, by timestep: most of its spread is the timestep's.

A batch with noisier timesteps has another loss without anything being wrong. Each sample is
therefore scored against the running mean and deviation of its timestep's bin.
"""

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor

from vidgen.recipe.schema import RecoveryConfig

BINS = 10  # of timesteps, equally wide
_WINDOW = 2048  # samples a bin remembers
_AT_LEAST = 32  # samples in a bin before it scores any


class LossByTimestep:
    """Means, and a score, from sums that are the same on every rank."""

    def __init__(self) -> None:
        self._count = [0.0] * BINS
        self._mean = [0.0] * BINS
        self._square = [0.0] * BINS

    @staticmethod
    def sums(t_B: Tensor, loss_B: Tensor) -> Tensor:
        """(3, BINS) fp64: samples, their losses, the losses squared; add them over ranks."""
        place_B = (t_B * BINS).long().clamp(0, BINS - 1)
        found = torch.zeros(3, BINS, dtype=torch.float64, device=loss_B.device)
        loss_B = loss_B.double()
        for row, values in enumerate((torch.ones_like(loss_B), loss_B, loss_B.square())):
            found[row].index_add_(0, place_B, values)
        return found

    def update(self, sums: Tensor) -> tuple[dict[str, float], float | None]:
        """Mean loss of each bin that has samples; the step's score, None while unknown."""
        counts, losses, squares = sums.tolist()
        score = scored = 0.0
        means = {}
        for b, (n, loss, square) in enumerate(zip(counts, losses, squares, strict=True)):
            if not n or not math.isfinite(loss):
                continue
            means[f"{b / BINS:.1f}"] = loss / n
            spread = math.sqrt(max(self._square[b] - self._mean[b] ** 2, 0.0))
            if self._count[b] >= _AT_LEAST and spread > 1e-9 * abs(self._mean[b]):
                score += (loss - n * self._mean[b]) / spread
                scored += n
            self._count[b] += n
            weight = n / min(self._count[b], max(_WINDOW, n))
            self._mean[b] += weight * (loss / n - self._mean[b])
            self._square[b] += weight * (square / n - self._square[b])
        return means, score / scored if scored else None

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count, "mean": self._mean, "square": self._square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count, self._mean, self._square = (
            list(state[name]) for name in ("count", "mean", "square")
        )


class Spikes:
    """Counts consecutive steps with a high score; a single spike is ignored."""

    def __init__(self, config: RecoveryConfig) -> None:
        self._z, self._steps = config.spike_z, config.spike_steps
        self._high: deque[list[tuple[int, int]]] = deque(maxlen=config.spike_steps)

    def sustained(self, score: float | None, positions: list[tuple[int, int]]) -> bool:
        """Whether this is the last of `spike_steps` high scores; `positions` of its batches."""
        if self._z is None or score is None or score < self._z:
            self._high.clear()
            return False
        self._high.append(positions)
        return len(self._high) == self._steps

    @property
    def positions(self) -> list[tuple[int, int]]:
        """Of the batches of the steps counted."""
        return [position for step in self._high for position in step]
