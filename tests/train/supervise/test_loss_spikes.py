"""The loss by timestep: sums that ranks add up, scores that timesteps do not disturb."""

import pytest
import torch

from vidgen.recipe.schema import RecoveryConfig
from vidgen.train.supervise.loss_spikes import BINS, LossByTimestep, Spikes


def usual(t: torch.Tensor) -> torch.Tensor:
    """A loss that depends on the timestep far more than on the sample."""
    return 1 + 10 * t + 0.1 * torch.randn_like(t)


def taught() -> LossByTimestep:
    found = LossByTimestep()
    for _ in range(200):
        t = torch.rand(8)
        found.update(LossByTimestep.sums(t, usual(t)))
    return found


def test_means_of_bins() -> None:
    t, loss = torch.tensor([0.0, 0.05, 0.95, 1.0]), torch.tensor([1.0, 3.0, 5.0, 9.0])
    means, score = LossByTimestep().update(LossByTimestep.sums(t, loss))
    assert means == {"0.0": 2.0, "0.9": 7.0}
    assert score is None


def test_ranks_add_up_to_one() -> None:
    t, loss = torch.rand(12), torch.rand(12)
    parts = LossByTimestep.sums(t[:5], loss[:5]) + LossByTimestep.sums(t[5:], loss[5:])
    assert torch.allclose(parts, LossByTimestep.sums(t, loss))
    assert parts.shape == (3, BINS)


def test_timesteps_do_not_look_like_spikes_and_spikes_do() -> None:
    found = taught()
    high = torch.full((8,), 0.99)  # losses near 11, where the mean of all is 6
    _, score = found.update(LossByTimestep.sums(high, usual(high)))
    assert score is not None
    assert abs(score) < 2
    low = torch.full((8,), 0.05)
    _, score = found.update(LossByTimestep.sums(low, usual(low) + 4))
    assert score is not None
    assert score > 5


def test_what_is_saved_goes_on() -> None:
    found, other = taught(), LossByTimestep()
    other.load_state_dict(found.state_dict())
    t = torch.rand(8)
    sums = LossByTimestep.sums(t, usual(t))
    assert found.update(sums) == other.update(sums)


@pytest.mark.parametrize(("z", "ends"), [(3.0, True), (None, False)])
def test_a_spike_must_last(z: float | None, ends: bool) -> None:
    spikes = Spikes(RecoveryConfig(spike_z=z, spike_steps=2))
    scores = [None, 9.0, 0.0, 9.0]
    assert not any(spikes.sustained(score, [(0, i)]) for i, score in enumerate(scores))
    assert spikes.sustained(9.0, [(0, 4)]) is ends
    if ends:
        assert spikes.positions == [(0, 3), (0, 4)]
