"""The objective and the schedule against the published formulas."""

import math
from itertools import pairwise

import pytest
import torch

from vidgen.diffusion import flow
from vidgen.diffusion.config import FlowConfig

CONFIG = FlowConfig()


@pytest.mark.parametrize(
    ("grid", "alpha"),
    [
        ((33, 24, 42), 5.73),  # 256px 16:9, 129 frames
        ((33, 72, 128), 11.87),  # 768px 16:9, 129 frames
        ((1, 32, 32), 1.0),  # an image of 256 x 256
        ((1, 128, 128), 3.0),  # and of 1024 x 1024
    ],
)
def test_shift_of_the_published_sizes(grid: tuple[int, int, int], alpha: float) -> None:
    assert flow.shift_alpha(CONFIG, grid) == pytest.approx(alpha, abs=5e-3)
    frames, rows, columns = grid
    line = (rows * columns // 4) / 1920 + 13 / 15
    assert flow.shift_alpha(CONFIG, grid) == pytest.approx(line * math.sqrt(frames), rel=1e-12)


def test_the_reports_shift_is_proportional_to_the_latents_volume() -> None:
    config = FlowConfig(shift="proportional")
    short, long = (flow.shift_alpha(config, (33, *size)) for size in ((24, 42), (72, 128)))
    assert long / short == pytest.approx(72 * 128 / (24 * 42))  # x9.1, the public rule's x2.07
    assert flow.shift_alpha(config, (11, 24, 42)) == pytest.approx(short / 3)
    # Where the two rules meet by default.
    assert short == pytest.approx(flow.shift_alpha(FlowConfig(), (33, 24, 42)), rel=1e-3)
    chosen = FlowConfig(shift="proportional", shift_reference=(1, 2, 3), shift_at_reference=0.5)
    assert flow.shift_alpha(chosen, (2, 4, 6)) == pytest.approx(4.0)


def test_flux_shift_is_its_own_rule_for_images() -> None:
    flux = FlowConfig(shift="flux")
    assert flow.shift_alpha(flux, (1, 72, 128)) == pytest.approx(2.332, abs=1e-3)  # 768px 16:9
    assert flow.shift_alpha(flux, (1, 32, 32)) == pytest.approx(math.exp(0.5))
    assert flow.shift_alpha(flux, (1, 128, 128)) == pytest.approx(math.exp(1.15))
    assert flow.shift_alpha(flux, (33, 72, 128)) == flow.shift_alpha(flux, (1, 72, 128))


def test_recipes_written_before_the_rules_had_names_mean_the_public_one() -> None:
    assert FlowConfig(shift=None).shift == "public"  # type: ignore[arg-type]


def test_a_fixed_shift_and_another_line() -> None:
    assert flow.shift_alpha(FlowConfig(shift=2.5), (33, 24, 42)) == 2.5
    line = FlowConfig(shift_low=(100, 2.0), shift_high=(200, 4.0))
    assert flow.shift_alpha(line, (4, 20, 30)) == pytest.approx(3.0 * 2)


def test_a_line_through_one_point_is_refused() -> None:
    with pytest.raises(ValueError, match="must lie below shift_high"):
        FlowConfig(shift_low=(256, 1.0), shift_high=(256, 3.0))


def test_times_fall_from_one_to_zero_and_dwell_in_noise() -> None:
    assert flow.timesteps(4, 1.0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    times = flow.timesteps(5, 3.0)
    for n, t in enumerate(times):
        u = 1 - n / 5
        assert t == pytest.approx(3 * u / (1 + 2 * u), abs=1e-12)
    assert all(a > b for a, b in pairwise(times))
    assert (times[0], times[-1]) == (1.0, 0.0)


def test_timesteps_drawn_are_logit_normal_then_shifted() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([flow.sample_timestep(1.0, generator) for _ in range(4000)])
    normal = torch.logit(drawn)
    assert drawn.dtype == torch.float32
    assert float(normal.mean()) == pytest.approx(0, abs=0.06)
    assert float(normal.std()) == pytest.approx(1, abs=0.06)
    one = flow.sample_timestep(1.0, torch.Generator().manual_seed(7))
    shifted = flow.sample_timestep(4.0, torch.Generator().manual_seed(7))
    torch.testing.assert_close(shifted, 4 * one / (1 + 3 * one))


def test_corrupt_is_the_straight_line_and_its_slope() -> None:
    clean, noise = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 4).double()
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    sigma = CONFIG.sigma_min
    x, target = flow.corrupt(CONFIG, clean, noise, t)
    for n, time in enumerate(t.tolist()):
        expected = (1 - time) * clean[n] + (1 - (1 - sigma) * (1 - time)) * noise[n]
        torch.testing.assert_close(x[n], expected)
    torch.testing.assert_close(target, (1 - sigma) * noise - clean)
    torch.testing.assert_close(x[2], noise[2])  # t = 1 is pure noise
    step = 1e-3
    ahead, _ = flow.corrupt(CONFIG, clean, noise, t + step)
    torch.testing.assert_close((ahead - x) / step, target, atol=1e-8, rtol=1e-8)


def test_loss_is_the_mean_over_all_tokens() -> None:
    predicted, target = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    expected = (predicted - target).square().mean((1, 2))
    torch.testing.assert_close(flow.loss_per_sample(predicted, target), expected)
    half = flow.loss_per_sample(predicted.bfloat16(), target.bfloat16())
    assert half.dtype == torch.float32
    mask = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    found = flow.loss_per_sample(predicted, target, mask)
    torch.testing.assert_close(found[0], (predicted - target)[0, :2].square().mean())
    assert found[1] == 0
    weights = torch.tensor([[1, 0.5, 0, 0, 0], [0.25, 0, 0, 0, 0]])
    found = flow.loss_per_sample(predicted, target, weights)
    error_BV = (predicted - target).square().mean(2)
    torch.testing.assert_close(found[0], (error_BV[0, 0] + 0.5 * error_BV[0, 1]) / 1.5)
    torch.testing.assert_close(found[1], error_BV[1, 0])  # of those that count, however little
