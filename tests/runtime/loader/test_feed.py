import itertools
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vidgen.runtime.loader import Feed, Job
from vidgen.runtime.memory import Arena, Lane, SimulatedEngine


def jobs() -> Iterator[Job[int]]:
    """Slots of different sizes, for ever."""
    for number in itertools.count():
        yield Job(number, (1 + number % 4, 10 + 50 * (number % 3)))


def fill(plan: int, sample: int, out: np.ndarray) -> int:
    time.sleep(random.random() * 0.002)
    out[:] = (plan * 7 + sample) % 256
    return plan * 100 + sample


def feed(arena: Arena, workers: int, ahead: int, **changes: Any) -> Feed[int, int]:
    lane = Lane("cpu", engine=SimulatedEngine(workers, latency_s=0.0005))
    how: dict[str, Any] = {"jobs": jobs(), "fill": fill} | changes
    return Feed(how["jobs"], how["fill"], arena=arena, lane=lane, workers=workers, ahead=ahead)


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize(("ahead", "room"), [(1, 2), (3, 4), (6, 2), (4, 1)])
def test_jobs_come_in_order_and_whole(workers: int, ahead: int, room: int) -> None:
    arena = Arena(room * 512, pinned=False)
    source = feed(arena, workers, ahead)
    for number in range(40):
        plan, slot, results = source.next()
        assert plan == number
        assert slot.shape == (1 + number % 4, 10 + 50 * (number % 3))
        assert results == [number * 100 + i for i in range(len(slot))]
        for i, row in enumerate(slot):
            assert (row == (number * 7 + i) % 256).all()
    source.close()
    arena.close()  # every slot is back


def test_the_next_jobs_are_made_before_they_are_asked_for() -> None:
    arena, filled, asked = Arena(8192, pinned=False), threading.Event(), []

    def slow(plan: int, sample: int, out: np.ndarray) -> int:
        asked.append(plan)
        if plan == 3:
            filled.set()
        return 0

    source = feed(arena, workers=1, ahead=3, fill=slow)
    source.next()
    assert filled.wait(20)
    assert max(asked) <= 3  # and no further
    source.close()
    arena.close()


@pytest.mark.parametrize("workers", [0, 3])
def test_an_error_is_raised_where_its_job_is_asked_for(workers: int) -> None:
    def broken(plan: int, sample: int, out: np.ndarray) -> int:
        if plan == 2:
            raise KeyError("sample two")
        return plan

    arena = Arena(8192, pinned=False)
    source = feed(arena, workers, ahead=4, fill=broken)
    assert [source.next()[0] for _ in range(2)] == [0, 1]
    for _ in range(2):
        with pytest.raises(KeyError, match="sample two"):
            source.next()
    source.close()
    arena.close()


def test_closing_in_the_middle() -> None:
    arena = Arena(8192, pinned=False)
    source = feed(arena, workers=4, ahead=6)
    source.next()
    source.close()
    source.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("vidgen-loader")]
    arena.close()
    with pytest.raises(RuntimeError, match="closed"):
        source.next()
