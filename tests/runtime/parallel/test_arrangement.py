"""The rule that picks ring, Ulysses or both, where the answer is known."""

import pytest

from vidgen.runtime.parallel.arrangement import Rates, Shape, choose, seconds

STAGE_3 = Shape(1, 76_544, 24, 128, 2)
FLOPS = 600e12


def rates(hop: float, exchange: float, degrees: tuple[int, ...] = (1, 2, 4, 8)) -> Rates:
    return Rates(FLOPS, dict.fromkeys(degrees, hop), dict.fromkeys(degrees, exchange))


def test_a_ring_that_hides_its_hops_beats_an_exchange_that_cannot() -> None:
    assert choose(STAGE_3, 4, [1, 2, 4], rates(hop=400e9, exchange=400e9)) == 1


def test_short_sequences_leave_hops_nothing_to_hide_behind() -> None:
    short = Shape(1, 4_096, 24, 128, 2)
    assert choose(short, 8, [1, 2, 4, 8], rates(hop=50e9, exchange=400e9)) == 8


def test_one_head_cannot_be_shared() -> None:
    one = Shape(1, 76_544, 1, 128, 2)
    assert choose(one, 4, [1, 2, 4], rates(hop=100e9, exchange=400e9)) == 1


def test_neighbours_exchange_heads_where_only_they_are_close() -> None:
    # Fast within four, slow beyond: rings between machines, heads within them.
    far = Rates(FLOPS, {1: 25e9, 2: 25e9, 4: 25e9}, {2: 400e9, 4: 400e9, 8: 10e9})
    assert choose(Shape(1, 40_000, 24, 128, 2), 8, [1, 2, 4, 8], far) == 4


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_nothing_is_faster_than_its_compute(degree: int) -> None:
    fast = rates(hop=1e30, exchange=1e30)
    compute = 3.5 * 4 * 76_544**2 * 24 * 128 / 4 / FLOPS
    assert seconds(STAGE_3, 4, degree, fast) == pytest.approx(compute, rel=1e-6)
