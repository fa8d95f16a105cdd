import gc

from vidgen.train.garbage import EVERY, collected_between_steps


class Knot:
    def __init__(self) -> None:
        self.me = self


def knots() -> int:
    return sum(isinstance(each, Knot) for each in gc.get_objects())


def test_garbage_goes_when_a_step_says_so() -> None:
    with collected_between_steps() as collect:
        assert not gc.isenabled()
        for _ in range(1000):
            Knot()
        collect(EVERY + 1)
        assert knots() == 1000
        collect(2 * EVERY)
        assert knots() == 0
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
