"""The share of a run's time lost to failures: MTBF, checkpoints, restarts, lost work.

Failures are a Poisson process whose rate is the sum over the GPUs. A failure costs the work since
the last checkpoint and a restart, which may itself fail and start again.
"""

import math
from dataclasses import dataclass

HOURS = 3600.0
_NEVER = (
    300.0  # upper limit of expected failures in an interval: it succeeds with probability exp(-300)
)


@dataclass(frozen=True)
class Reliability:
    gpu_mtbf_hours: float = 50_000.0
    """MTBF of one GPU with its share of the machine. Published for Llama 3: 419 failures in 54 days
    on 16,384 H100, one in 50,700 GPU hours."""
    checkpoint_s: float = 10.0  # time that training is blocked; shorter for a background save
    restart_s: float = 300.0  # from the failure to the first step: detection, start, load

    def mtbf_s(self, gpus: int) -> float:
        return self.gpu_mtbf_hours * HOURS / gpus


def effective_fraction(reliability: Reliability, gpus: int, interval_s: float) -> float:
    """Share of the wall time spent on training that is not lost, saving every `interval_s`.

    With failure rate r, an interval of w seconds that restarts (in R seconds) after each failure
    takes (exp(r w) - 1) (1 / r + E) on average, where E = (exp(r R) - 1) / r is the mean duration
    of a restart that may itself fail.
    """
    rate = 1 / reliability.mtbf_s(gpus)
    stretch = interval_s + reliability.checkpoint_s
    if rate * max(stretch, reliability.restart_s) > _NEVER:
        return 0.0
    restart = math.expm1(rate * reliability.restart_s) / rate
    return interval_s / (math.expm1(rate * stretch) * (1 / rate + restart))


def best_interval(reliability: Reliability, gpus: int) -> float:
    """The interval between checkpoints that loses the least time, by golden-section search."""
    first = math.sqrt(
        2 * reliability.checkpoint_s * reliability.mtbf_s(gpus)
    )  # Young's approximation
    low, high = first / 10, first * 10
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-3 * first:
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if effective_fraction(reliability, gpus, a) > effective_fraction(reliability, gpus, b):
            high = b
        else:
            low = a
    return (low + high) / 2
