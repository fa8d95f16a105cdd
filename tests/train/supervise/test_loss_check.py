"""What a step's loss means for the run: go on, or end, and by which batches."""

import math
from typing import Any

import torch

from vidgen.data.index.buckets import Bucket
from vidgen.data.loader import Batch
from vidgen.recipe.schema import RecoveryConfig
from vidgen.train.step_result import StepResult, reduce_losses
from vidgen.train.supervise.loss_check import LossCheck, LossMonitor


def result(losses: list[float], step: int = 0) -> StepResult:
    count = len(losses)
    batch = Batch(
        pixels_BTHWC=torch.zeros(count, 1, 8, 8, 3, dtype=torch.uint8),
        captions=[""] * count,
        fps=[24.0] * count,
        motion=[None] * count,
        keys=[10 + n for n in range(count)],
        bucket=Bucket("8px", 1, 8, 8),
        epoch=2,
        step_in_epoch=step,
    )
    bins = torch.full((count,), 0.5)
    return StepResult(batch, bins, torch.tensor(losses), count, 1, 1)


def monitor(**changes: Any) -> LossMonitor:
    return LossMonitor(RecoveryConfig(spike_z=3.0, spike_steps=2, **changes), "loss_by_t")


def check(monitor: LossMonitor, one: StepResult, norm: float = 1.0) -> LossCheck:
    return monitor.check(reduce_losses([one], world=1, data_world=1), norm, [one])


def usual(monitor: LossMonitor) -> None:
    for step in range(8):
        assert check(monitor, result([0.9, 1.0, 1.1, 1.0, 0.95, 1.05], step)).bad is None


def test_usual_losses_are_logged_by_bin_and_scored() -> None:
    m = monitor()
    usual(m)
    figures = check(m, result([1.0, 1.0])).figures
    assert figures["loss"] == 1.0
    assert figures["loss_by_t"] == {"0.5": 1.0}
    assert abs(figures["loss_by_t_z"]) < 1


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_row() -> None:
    bad = check(monitor(), result([1.0, math.nan], step=4)).bad
    assert bad is not None
    assert "of manifest row(s) 11, epoch 2" in bad.reason
    assert bad.positions == [(2, 4)]


def test_a_gradient_norm_that_is_not_finite_ends_it_too() -> None:
    bad = check(monitor(), result([1.0]), norm=math.inf).bad
    assert bad is not None
    assert "gradient norm inf" in bad.reason


def test_only_spikes_in_a_row_end_the_run_with_all_their_batches() -> None:
    m = monitor()
    usual(m)
    assert check(m, result([9.0] * 4, step=20)).bad is None
    bad = check(m, result([9.0] * 4, step=21)).bad
    assert bad is not None
    assert "in 2 steps in a row" in bad.reason
    assert bad.positions == [(2, 20), (2, 21)]


def test_what_is_usual_survives_a_checkpoint() -> None:
    m, resumed = monitor(), monitor()
    usual(m)
    resumed.load_state_dict(m.state_dict())
    one = result([1.2] * 3)
    assert check(m, one).figures == check(resumed, one).figures
    assert check(resumed, one).figures["loss_by_t_z"] is not None
