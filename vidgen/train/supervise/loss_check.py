"""Whether a step's loss lets the run continue: finite, and not far above the usual step after step.

What it finds ends the run before the weights are updated; the loop decides on that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vidgen.recipe.schema import RecoveryConfig
from vidgen.train.step_result import StepLosses, StepResult, name_bad_rows, positions
from vidgen.train.supervise.loss_spikes import LossByTimestep, Spikes
from vidgen.train.supervise.recovery import Position


@dataclass(frozen=True)
class BadLoss:
    """Why the run must end, and the batches to blame."""

    reason: str
    positions: list[Position]


@dataclass(frozen=True)
class LossCheck:
    """The verdict on one step: what to log, or why the run ends."""

    figures: dict[str, Any]
    bad: BadLoss | None = None


class LossMonitor:
    """Compares each step's losses with the usual ones; the same verdict on every rank."""

    def __init__(self, config: RecoveryConfig, name: str) -> None:
        """`name` is that of the losses by bin in metrics.jsonl."""
        self._name, self._spike_steps = name, config.spike_steps
        self._usual, self._spikes = LossByTimestep(), Spikes(config)

    def check(
        self, losses: StepLosses, grad_norm: float, results: Sequence[StepResult]
    ) -> LossCheck:
        loss = losses.figures["loss"]
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            reason = f"loss {loss:g}, gradient norm {grad_norm:g}, {name_bad_rows(results)}"
            return LossCheck(losses.figures, BadLoss(reason, positions(results)))
        by_bin, score = self._usual.update(losses.bin_sums)
        figures = {**losses.figures, self._name: by_bin, f"{self._name}_z": score}
        if self._spikes.sustained(score, positions(results)):
            reason = (
                f"loss {loss:g} is {score:.1f} deviations above the usual loss, as in "
                f"{self._spike_steps} steps in a row"
            )
            return LossCheck(figures, BadLoss(reason, self._spikes.positions))
        return LossCheck(figures)

    def state_dict(self) -> dict[str, Any]:
        return self._usual.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._usual.load_state_dict(state)
