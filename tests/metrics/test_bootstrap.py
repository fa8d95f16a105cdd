"""Intervals cover the truth as often as they say, and claims fail when they should."""

import numpy as np
import pytest

from vidgen.metrics.bootstrap import interval, not_worse, paired


def test_an_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for number in range(200):
        found = interval(rng.normal(3, 2, 60), seed=number, resamples=400)
        covered += found.low <= 3 <= found.high
    assert 180 <= covered <= 198


def test_an_interval_is_the_same_every_time_and_leaves_nan_out():
    values = np.array([1.0, 2.0, np.nan, 4.0])
    assert interval(values) == interval(values)
    assert interval(values).value == pytest.approx(7 / 3)
    assert np.isnan(interval([np.nan]).value)


def test_pairing_removes_what_prompts_have_in_common():
    rng = np.random.default_rng(1)
    prompt = rng.normal(0, 5, 80)
    ours, reference = prompt + 1.0 + rng.normal(0, 0.1, 80), prompt
    assert paired(ours, reference).low > 0.9
    assert interval(ours).half_width > 5 * paired(ours, reference).half_width
    with pytest.raises(ValueError, match="differ in number"):
        paired([1.0], [1.0, 2.0])


def test_not_worse_needs_a_small_loss_and_a_precise_one():
    rng = np.random.default_rng(2)
    reference = rng.normal(1, 0.05, 200)
    assert not_worse(reference - 0.01, reference, 0.05).holds
    assert not not_worse(reference - 0.08, reference, 0.05).holds
    noisy = not_worse(reference + rng.normal(0, 1, 200), reference, 0.05)
    assert not noisy.precise
    assert not noisy.holds


def test_a_statistic_of_rows():
    rows = np.arange(20.0)
    found = interval(rows, lambda r: float(np.median(r)))
    assert found.value == 9.5
    assert found.low < 9.5 < found.high
