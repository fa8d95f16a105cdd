"""What failures leave of a run's time: mean time between them, checkpoints, restarts, lost work.

Failures come at random, the machine's rate the sum of its GPUs'. A failure costs the work since the
last checkpoint and a restart, in which another failure may come and begin the restart anew.
"""

import math
from dataclasses import dataclass

HOURS = 3600.0
_NEVER = 300.0  # failures expected in a stretch that must have none: exp(-300) of them pass


@dataclass(frozen=True)
class Reliability:
    gpu_mtbf_hours: float = 50_000.0
    """Of one GPU with its share of the machine; 419 failures in 54 days of 16,384 H100 were
    published for Llama 3: one in 50,700 GPU hours."""
    checkpoint_s: float = 10.0  # for which training stands still: a save in the background has less
    restart_s: float = 300.0  # from the failure to the first step: seen, started, loaded

    def mtbf_s(self, gpus: int) -> float:
        return self.gpu_mtbf_hours * HOURS / gpus


def effective_fraction(reliability: Reliability, gpus: int, interval_s: float) -> float:
    """Share of the wall time that is training which counts, saving every `interval_s` of it.

    Of a Poisson process of rate r: a stretch of w seconds that must pass without a failure, and
    else begins again after a restart of R, takes (exp(r w) - 1) (1 / r + E) on average, with
    E = (exp(r R) - 1) / r the mean length of a restart that may fail itself.
    """
    rate = 1 / reliability.mtbf_s(gpus)
    stretch = interval_s + reliability.checkpoint_s
    if rate * max(stretch, reliability.restart_s) > _NEVER:
        return 0.0
    restart = math.expm1(rate * reliability.restart_s) / rate
    return interval_s / (math.expm1(rate * stretch) * (1 / rate + restart))


def best_interval(reliability: Reliability, gpus: int) -> float:
    """Seconds of training between checkpoints that lose least, by golden section."""
    first = math.sqrt(2 * reliability.checkpoint_s * reliability.mtbf_s(gpus))  # Young's
    low, high = first / 10, first * 10
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-3 * first:
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if effective_fraction(reliability, gpus, a) > effective_fraction(reliability, gpus, b):
            high = b
        else:
            low = a
    return (low + high) / 2
