"""Bootstrap intervals of means and of paired differences, and claims that rest on them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % percentile interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def interval(
    values: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], float] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Of the mean, or of a `statistic` over rows; NaN values are left out of a mean."""
    rows = np.asarray(values, dtype=np.float64)
    if statistic is None:
        rows = rows[~np.isnan(rows)]
    if not len(rows):
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    if statistic is None:
        drawn = rows[rng.integers(len(rows), size=(resamples, len(rows)))].mean(1)
        value = float(rows.mean())
    else:
        drawn = np.array(
            [statistic(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(resamples)]
        )
        value = statistic(rows)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def paired(ours: ArrayLike, reference: ArrayLike, *, seed: int = 0) -> Interval:
    """Of the mean of `ours - reference`, pairs made of the same prompt and seed.

    A pair with a NaN is left out: what it measures is not there on one side.
    """
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"pairs differ in number: {a.shape} and {b.shape}")
    return interval(a - b, seed=seed)


@dataclass(frozen=True)
class Claim:
    """Not worse than a reference by more than `margin`, decided before the run."""

    loss: Interval  # reference - ours, where larger values are better
    margin: float

    @property
    def precise(self) -> bool:
        """Whether the sample is large enough: half the interval is at most half the margin."""
        return self.loss.half_width <= self.margin / 2

    @property
    def holds(self) -> bool:
        return self.precise and self.loss.high < self.margin


def not_worse(ours: ArrayLike, reference: ArrayLike, margin: float, *, seed: int = 0) -> Claim:
    """Values of which larger ones are better; an imprecise claim counts as failed."""
    return Claim(paired(reference, ours, seed=seed), margin)
