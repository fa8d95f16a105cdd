import gc
import itertools
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worker_requests import Die, Fill, Hang, Modules, Raise

from vidgen.runtime.loader.feed import Feed, Filling, Job
from vidgen.runtime.loader.processes import Lost
from vidgen.runtime.memory import Arena, Lane, SimulatedEngine


def jobs() -> Iterator[Job[int]]:
    """Slots of different sizes, for ever."""
    for number in itertools.count():
        yield Job(number, (1 + number % 4, 10 + 50 * (number % 3)))


def fill(plan: int, sample: int, out: np.ndarray) -> Filling[int]:
    yield Fill(1)
    assert (out == 1).all()
    yield Fill(plan * 7 + sample)
    return plan * 100 + sample


def feed(
    room: int, workers: int, ahead: int, by_lane: bool = True, largest: int = 512, **changes: Any
) -> Feed[int, Any]:
    lane = Lane("cpu", engine=SimulatedEngine(workers, latency_s=0.0005)) if by_lane else None
    arena = Arena(room, pinned=False, shared=workers > 0)
    how: dict[str, Any] = {"jobs": jobs(), "fill": fill, "timeout_s": 60.0} | changes
    return Feed(
        how["jobs"],
        how["fill"],
        arena=arena,
        lane=lane,
        largest=largest,
        workers=workers,
        ahead=ahead,
        timeout_s=how["timeout_s"],
    )


def close(source: Feed[int, Any]) -> None:
    source.close()
    source._arena.close()  # every slot is back


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("by_lane", [True, False])
@pytest.mark.parametrize(("ahead", "room"), [(3, 4), (6, 2), (4, 1)])
def test_jobs_come_in_order_and_whole(workers: int, by_lane: bool, ahead: int, room: int) -> None:
    source = feed(room * 512, workers, ahead, by_lane)
    for number in range(24):
        plan, slot, results = source.next()
        assert plan == number
        assert slot.shape == (1 + number % 4, 10 + 50 * (number % 3))
        assert results == [number * 100 + i for i in range(len(slot))]
        for i, row in enumerate(slot):
            assert (row == (number * 7 + i) % 256).all()
    close(source)


def test_the_next_jobs_are_made_before_they_are_asked_for() -> None:
    filled, asked = threading.Event(), []

    def noted(plan: int, sample: int, out: np.ndarray) -> Filling[None]:
        asked.append(plan)
        yield Fill(0)
        if plan == 3:
            filled.set()

    source = feed(8192, workers=1, ahead=3, fill=noted)
    source.next()
    assert filled.wait(60)
    assert max(asked) <= 3  # and no further
    close(source)


@pytest.mark.parametrize(("workers", "where"), [(0, "thread"), (3, "thread"), (3, "request")])
def test_an_error_is_raised_where_its_job_is_asked_for(workers: int, where: str) -> None:
    def broken(plan: int, sample: int, out: np.ndarray) -> Filling[int]:
        if plan == 2 and where == "thread":
            raise KeyError("sample two")
        yield Raise() if plan == 2 else Fill(plan)
        return plan

    source = feed(8192, workers, ahead=4, fill=broken)
    assert [source.next()[0] for _ in range(2)] == [0, 1]
    for _ in range(2):
        with pytest.raises(KeyError, match="sample two"):
            source.next()
    close(source)


def one_job_of(request: Any, samples: int = 3) -> dict[str, Any]:
    """Sample 1 of the first job asks `request`, all others are filled."""

    def asking(plan: int, sample: int, out: np.ndarray) -> Filling[Any]:
        answer = yield request if (plan, sample) == (0, 1) else Fill(9)
        if isinstance(answer, Lost):
            yield Fill(3)  # what replaces it
        return answer

    return {"jobs": (Job(n, (samples, 100)) for n in itertools.count()), "fill": asking}


def test_a_request_that_hangs_is_killed_and_replaced() -> None:
    source = feed(4096, workers=2, ahead=2, timeout_s=1.0, **one_job_of(Hang()))
    started = time.monotonic()
    _, slot, results = source.next()
    assert time.monotonic() - started < 60
    assert results[1] == Lost("took longer than 1 s and was abandoned")
    assert slot[:, 0].tolist() == [9, 3, 9]
    _, slot, later = source.next()
    assert (slot == 9).all()
    assert all(Path(f"/proc/{pid}").exists() for pid in later)
    close(source)


def test_a_process_that_dies_is_replaced_and_its_request_tried_once_more(tmp_path: Path) -> None:
    times = tmp_path / "times"
    times.write_text("1")
    source = feed(4096, workers=1, ahead=2, **one_job_of(Die(times)))
    assert source.next()[2][1] == "lived"
    close(source)
    times.write_text("5")
    source = feed(4096, workers=1, ahead=2, **one_job_of(Die(times)))
    _, slot, results = source.next()
    assert results[1] == Lost("ended its worker process twice (SIGSEGV)")
    assert slot[1, 0] == 3
    assert times.read_text() == "3"
    close(source)


def test_workers_killed_from_outside_change_nothing() -> None:
    source = feed(4096, workers=2, ahead=4)
    victims: set[int] = set()
    for number in range(30):
        _, slot, _ = source.next()
        for i, row in enumerate(slot):
            assert (row == (number * 7 + i) % 256).all()
        if number in (3, 11):
            victims |= workers_of(os.getpid())
            os.kill(max(workers_of(os.getpid())), 9)
    assert victims
    close(source)
    assert not workers_of(os.getpid())


def workers_of(parent: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().split(" (", 1)[1].rsplit(") ", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, its_parent = rest.split()[:2]
        if int(its_parent) == parent and state != "Z" and name.startswith("vidgen-loader"):
            found.add(int(stat.parent.name))
    return found


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    source = feed(4096, workers=2, ahead=3)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="ended with status 1 before it was ready"):
            source.next()
    close(source)


def test_a_worker_loads_no_torch() -> None:
    source = feed(4096, workers=1, ahead=1, **one_job_of(Modules()))
    modules = source.next()[2][1]
    assert "numpy" in modules
    assert not {"torch", "pydantic", "vidgen.runtime.memory"} & set(modules)
    close(source)


def test_closing_in_the_middle() -> None:
    source = feed(8192, workers=2, ahead=6)
    source.next()
    source.close()
    source.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("vidgen-loader")]
    source._arena.close()
    with pytest.raises(RuntimeError, match="closed"):
        source.next()


def test_slots_are_not_held_by_what_was_handed_out() -> None:
    source = feed(4096, workers=0, ahead=1)
    fillings = weakref.WeakSet[Any]()
    real = source._fill
    source._fill = lambda *a: fillings.add(made := real(*a)) or made  # type: ignore[func-returns-value]
    for _ in range(3):
        source.next()
    gc.collect()
    assert not len(fillings)
    close(source)


@pytest.mark.parametrize("workers", [0, 2])
def test_without_a_lane_the_slot_itself_is_handed_out(workers: int) -> None:
    source = feed(4 * 512, workers, ahead=2, by_lane=False)
    arena = source._arena
    _, first, _ = source.next()
    assert any("a view of it is kept" in line for line in arena.holders())
    del first
    assert not any("a view of it is kept" in line for line in arena.holders())
    close(source)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_are_kept_are_never_written_again(workers: int) -> None:
    """More of them than the arena has room for."""
    source = feed(3 * 512, workers, ahead=2, by_lane=False)
    kept = [source.next() for _ in range(20)]
    for number, (plan, slot, _) in enumerate(kept):
        assert plan == number
        for i, row in enumerate(slot):
            assert (row == (number * 7 + i) % 256).all()
    close(source)
    assert (kept[0][1] == 0).all()
    assert (kept[3][1][3] == 24).all()


def test_the_next_job_begins_when_a_batch_is_dropped() -> None:
    """Not when the next one is asked for."""
    begun = threading.Semaphore(0)

    def noted(plan: int, sample: int, out: np.ndarray) -> Filling[None]:
        begun.release()
        yield Fill(1)

    source = feed(
        3 * 512, 1, 2, by_lane=False, fill=noted, jobs=(Job(n, (1, 512)) for n in range(9))
    )
    held = [source.next()[1], source.next()[1]]
    for _ in range(3):
        assert begun.acquire(timeout=60)
    assert not begun.acquire(timeout=0.3)  # two slots are held, one is filled
    held.pop()
    assert begun.acquire(timeout=60)
    close(source)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_end_of_the_jobs_comes_after_the_last_of_them(workers: int) -> None:
    def two() -> Iterator[Job[int]]:
        yield from (Job(n, (1, 16)) for n in range(2))
        raise KeyError("the third")

    source = feed(4096, workers, ahead=4, jobs=two())
    assert [source.next()[0] for _ in range(2)] == [0, 1]
    for _ in range(2):
        with pytest.raises(KeyError, match="the third"):
            source.next()
    close(source)
