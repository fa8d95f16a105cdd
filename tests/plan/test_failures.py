"""Effective training time by formula, beside events drawn one by one."""

import random

import pytest

from vidgen.plan.failures import Reliability, best_interval, effective_fraction

USUAL = Reliability()
POOR = Reliability(gpu_mtbf_hours=4_000, checkpoint_s=120, restart_s=1200)


def simulate(
    reliability: Reliability, gpus: int, interval_s: float, stretches: int, seed: int
) -> float:
    """The share of time spent training, from events drawn until all checkpoints are written."""
    rng, rate = random.Random(seed), 1 / reliability.mtbf_s(gpus)
    stretch = interval_s + reliability.checkpoint_s
    clock, failure = 0.0, rng.expovariate(rate)
    for _ in range(stretches):
        while failure < clock + stretch:
            clock = failure
            failure = clock + rng.expovariate(rate)
            while failure < clock + reliability.restart_s:
                clock = failure
                failure = clock + rng.expovariate(rate)
            clock += reliability.restart_s
        clock += stretch
    return stretches * interval_s / clock


@pytest.mark.parametrize("gpus", [224, 1000, 4000, 10_000])
@pytest.mark.parametrize("reliability", [USUAL, POOR], ids=["usual", "poor"])
def test_the_formula_is_what_events_come_to(reliability: Reliability, gpus: int) -> None:
    interval = best_interval(reliability, gpus)
    found = simulate(reliability, gpus, interval, stretches=20_000, seed=gpus)
    assert effective_fraction(reliability, gpus, interval) == pytest.approx(found, rel=0.02)


def test_the_best_interval_is_best() -> None:
    for gpus in (224, 10_000):
        best = best_interval(POOR, gpus)
        least = effective_fraction(POOR, gpus, best)
        for factor in (0.5, 0.9, 1.1, 2):
            assert effective_fraction(POOR, gpus, factor * best) < least


def test_more_gpus_leave_less_and_no_failures_leave_all_but_saves() -> None:
    shares = [effective_fraction(USUAL, gpus, 600) for gpus in (224, 1000, 4000, 10_000)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.97
    never = Reliability(gpu_mtbf_hours=1e12)
    assert effective_fraction(never, 224, 600) == pytest.approx(600 / 610)


def test_a_machine_that_always_fails_trains_nothing() -> None:
    hopeless = Reliability(gpu_mtbf_hours=1, restart_s=600)
    assert effective_fraction(hopeless, 10_000, best_interval(hopeless, 10_000)) == 0
