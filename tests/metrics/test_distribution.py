"""Distances between samples: zero for equal distributions, known values for Gaussians."""

import numpy as np
import pytest

from vidgen.metrics.distribution import energy_distance, frechet_distance


def test_energy_distance_is_unbiased_and_sees_a_shift_and_a_collapse():
    rng = np.random.default_rng(0)
    same = [energy_distance(*rng.normal(size=(2, 60, 2))) for _ in range(100)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 10 + 1e-3
    x = rng.normal(size=(200, 2))
    assert energy_distance(x, x + 2) > 1
    assert energy_distance(x, 0.1 * x) > 0.3  # the same mean, no diversity
    with pytest.raises(ValueError, match="two rows"):
        energy_distance(x[:1], x)


def test_energy_distance_of_points_on_a_line():
    # 2 * mean|x - y| - 2 * |x - x'| / 2 pairs: by hand
    assert energy_distance([0.0, 1.0], [2.0, 4.0]) == pytest.approx(2 * 2.5 - 1 - 2)


def test_frechet_distance_of_gaussians():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 3))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    shifted = x + np.array([3.0, 0, 0])
    assert frechet_distance(x, shifted) == pytest.approx(9, abs=1e-6)
    assert frechet_distance(x, 2 * x - x.mean(0)) == pytest.approx(3, rel=0.1)  # sum (2 - 1)^2
