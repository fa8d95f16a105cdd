import gc
import os
import random
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen.runtime.memory import Arena, ArenaTimeout, LeaseError


class Switch:
    """An event the test fires."""

    def __init__(self, on: bool = False) -> None:
        self.on = on

    def done(self) -> bool:
        return self.on


def test_a_lease_is_a_view_of_the_size_asked() -> None:
    arena = Arena(4096, pinned=False)
    lease = arena.lease(6 * 4)
    tensor = lease.tensor((2, 3), torch.float32)
    tensor.fill_(2.5)
    assert lease.tensor((2, 3), torch.float32).sum() == 15.0
    assert lease.tensor((24,)).numpy().base is not None  # no copy
    assert tensor.data_ptr() % 256 == 0
    with pytest.raises(ValueError, match=r"takes 28 bytes of 24"):
        lease.tensor((7,), torch.float32)
    lease.give_back()
    arena.close()


def test_sizes_are_exact_and_neighbours_merge() -> None:
    arena = Arena(10 * 256, pinned=False)
    leases = [arena.lease(700) for _ in range(3)]  # 768 each: no power of two
    assert arena.stats().held == 3 * 768
    assert arena.try_lease(300) is None
    for i in (0, 2, 1):
        leases[i].give_back()
    whole = arena.lease(10 * 256)
    assert arena.stats().largest_free == 0
    whole.give_back()
    assert arena.stats().high_water == 10 * 256


def test_best_fit_takes_the_smallest_hole() -> None:
    arena = Arena(10 * 256, pinned=False)
    leases = [arena.lease(256 * n) for n in (3, 1, 2, 1, 3)]
    leases[0].give_back()
    leases[2].give_back()
    small = arena.lease(2 * 256)
    assert arena.stats().largest_free == 3 * 256
    for lease in (small, leases[1], leases[3], leases[4]):
        lease.give_back()
    arena.close()


def test_a_lease_returns_only_when_its_event_has_come() -> None:
    arena = Arena(256, pinned=False)
    event = Switch()
    arena.lease(256).give_back(after=event)
    assert arena.try_lease(256) is None
    event.on = True
    arena.lease(256).give_back()


def test_returning_early_names_the_place() -> None:
    arena = Arena(256, pinned=False)
    lease = arena.lease(256, what="clip slot")
    event = Switch()
    lease.used_by(event)
    with pytest.raises(LeaseError, match=r"returned early.*\(clip slot\).*test_arena\.py:\d+"):
        lease.give_back()
    event.on = True
    lease.give_back()


def test_returning_twice_and_use_afterwards() -> None:
    arena = Arena(256, pinned=False)
    lease = arena.lease(256)
    lease.give_back()
    with pytest.raises(LeaseError, match=r"returned twice.*test_arena\.py:\d+"):
        lease.give_back()
    with pytest.raises(LeaseError, match="used after its return"):
        lease.tensor((1,))
    with pytest.raises(LeaseError, match="used after its return"):
        lease.used_by(Switch())


def test_a_leak_is_told_and_its_memory_comes_back() -> None:
    arena = Arena(256, pinned=False)
    arena.lease(100, what="lost")
    gc.collect()
    with pytest.raises(LeaseError, match=r"without being returned.*\(lost\).*test_arena\.py:\d+"):
        arena.lease(256)
    arena.lease(256).give_back()  # told once
    arena.lease(256)
    gc.collect()
    with pytest.raises(LeaseError, match="without being returned"):
        arena.close()


def test_a_leaked_lease_waits_for_its_copies() -> None:
    arena = Arena(256, pinned=False)
    event = Switch()
    arena.lease(256).used_by(event)
    gc.collect()
    with pytest.raises(LeaseError):
        arena.try_lease(256)
    assert arena.try_lease(256) is None
    event.on = True
    arena.lease(256).give_back()


def test_timeout_names_the_holders() -> None:
    arena = Arena(512, pinned=False, name="pool")
    first, second = arena.lease(200, what="one"), arena.lease(200, what="two")
    began = time.monotonic()
    with pytest.raises(ArenaTimeout, match=r"pool: no 300 bytes.*\(one\).*\(two\)"):
        arena.lease(300, timeout=0.05)
    assert 0.04 < time.monotonic() - began < 5
    assert arena.stats().held == 512
    first.give_back()
    second.give_back()


def test_a_waiting_thread_goes_on_when_room_comes() -> None:
    arena = Arena(256, pinned=False)
    held = arena.lease(256)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(arena.lease(256, timeout=30)))
    thread.start()
    time.sleep(0.02)
    assert not got
    held.give_back()
    thread.join(30)
    assert arena.stats().waits == 1
    got.pop().give_back()


def test_closing_with_leases_out() -> None:
    arena = Arena(256, pinned=False)
    lease = arena.lease(10)
    with pytest.raises(LeaseError, match="closed while on loan: 256 bytes"):
        arena.close()
    lease.give_back()
    arena.close()
    arena.close()
    with pytest.raises(LeaseError, match="is closed"):
        arena.lease(10)


@pytest.mark.parametrize("nbytes", [0, -1, 257])
def test_impossible_sizes(nbytes: int) -> None:
    with pytest.raises(ValueError, match="out of 256"):
        Arena(256, pinned=False).lease(nbytes)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 2**32))
def test_leases_never_overlap_and_nothing_is_lost(actions: list[int], seed: int) -> None:
    rng = random.Random(seed)
    arena = Arena(16 * 256, pinned=False)
    held: list[tuple[Any, int]] = []
    for number, action in enumerate(actions):
        if action < 6:
            lease = arena.try_lease(rng.randint(1, 5 * 256))
            if lease is not None:
                lease.tensor((lease.nbytes,)).fill_(number % 256)
                held.append((lease, number % 256))
        elif held:
            lease, value = held.pop(rng.randrange(len(held)))
            assert (lease.tensor((lease.nbytes,)) == value).all()
            lease.give_back()
    for lease, value in held:
        assert (lease.tensor((lease.nbytes,)) == value).all()
        lease.give_back()
    assert arena.stats().largest_free == arena.nbytes
    arena.close()


@pytest.mark.gpu
def test_memory_is_page_locked_once() -> None:
    arena = Arena(1 << 20)
    lease = arena.lease(4096)
    assert lease.tensor((4096,)).is_pinned()
    assert arena.stats().registrations == 1
    lease.give_back()
    arena.close()


def test_seen_without_a_copy_by_torch_and_numpy() -> None:
    arena = Arena(4096, pinned=False)
    lease = arena.lease(24)
    lease.tensor((2, 3), torch.float32).copy_(torch.arange(6.0).view(2, 3))
    assert lease.numpy((6,), np.float32).tolist() == [0, 1, 2, 3, 4, 5]
    lease.numpy((3, 2), np.float32)[2, 1] = 9
    assert lease.tensor((6,), torch.float32)[5] == 9
    assert lease.tensor((12,), torch.bfloat16).dtype == torch.bfloat16
    assert lease.tensor((0, 3)).shape == (0, 3)
    lease.give_back()
    arena.close()


def test_a_view_kept_after_the_return_keeps_its_bytes() -> None:
    arena = Arena(512, pinned=False)
    lease = arena.lease(256, what="viewed")
    views: list[Any] = [lease.tensor((256,)).fill_(3)[7:], lease.numpy((256,))[3:9]]
    lease.give_back()
    assert "a view of it is kept" in arena.holders()[0]
    assert arena.stats().held == 256
    other = arena.lease(256)
    other.tensor((256,)).fill_(5)
    assert arena.try_lease(256) is None
    assert (views[0] == 3).all()
    views.pop(0)
    assert (views[0] == 3).all()
    views.pop()
    arena.lease(256).give_back()
    other.give_back()
    arena.close()


def test_a_view_outlives_its_arena() -> None:
    arena = Arena(512, pinned=False)
    lease = arena.lease(256)
    view = lease.tensor((256,)).fill_(3)
    lease.give_back()
    arena.close()
    del arena, lease
    gc.collect()
    assert (view == 3).all()


def test_alignment() -> None:
    arena = Arena(5 * 4096, pinned=False)
    first = arena.lease(100)
    second = arena.lease(4096, align=4096)
    assert (first.offset, second.offset, second.pointer % 4096) == (0, 4096, 0)
    between = arena.lease(4096 - 256)  # what alignment left is not lost
    assert between.offset == 256
    with pytest.raises(ValueError, match="an alignment of 3"):
        arena.lease(8, align=3)
    for lease in (first, second, between):
        lease.give_back()
    arena.close()


def test_fragmentation_is_counted() -> None:
    arena = Arena(4 * 256, pinned=False)
    leases = [arena.lease(256) for _ in range(4)]
    leases[0].give_back()
    leases[2].give_back()
    assert arena.stats().fragmentation == 0.5
    leases[1].give_back()
    assert arena.stats().fragmentation == 0
    leases[3].give_back()


def test_an_interrupt_ends_the_wait() -> None:
    # Where these tests run in the background, the shell had it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    arena = Arena(256, pinned=False)
    held = arena.lease(256)
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])

    def wait() -> None:
        timer.start()
        arena.lease(256, timeout=60)

    try:
        with pytest.raises(KeyboardInterrupt):
            wait()
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    held.give_back()


def test_a_forked_child_is_told_and_harms_nothing() -> None:
    arena = Arena(4096, pinned=False)
    lease = arena.lease(256)
    lease.tensor((256,)).fill_(1)
    child = os.fork()
    if child == 0:
        try:
            lease.tensor((1,))
        except LeaseError as error:
            os._exit(0 if "forked child" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert (lease.tensor((256,)) == 1).all()
    lease.give_back()
    arena.close()


def test_a_large_request_is_not_overtaken_for_ever() -> None:
    """Small ones come and go, never leaving the arena empty."""
    arena = Arena(4 * 256, pinned=False)
    served = threading.Event()

    def large() -> None:
        arena.lease(4 * 256, timeout=60, what="the large one").give_back()
        served.set()

    small = [arena.lease(256)]
    waiting = threading.Thread(target=large)
    waiting.start()
    deadline = time.monotonic() + 60
    while (extra := arena.try_lease(256)) is not None:  # until the large one waits
        extra.give_back()
        assert time.monotonic() < deadline
    with pytest.raises(ArenaTimeout, match="first in the queue for room: 1024 bytes asked for at"):
        arena.lease(256, timeout=0)
    small.pop().give_back()
    arena.lease(256, timeout=60).give_back()
    assert served.is_set()
    waiting.join()
    arena.close()


def test_who_gives_up_waiting_lets_the_next_one_by() -> None:
    arena = Arena(4 * 256, pinned=False)
    held = arena.lease(256)
    with pytest.raises(ArenaTimeout):
        arena.lease(4 * 256, timeout=0.01)
    arena.lease(256, timeout=0).give_back()
    held.give_back()
    arena.close()


@pytest.mark.parametrize("shared", [False, True])
def test_dropped_pages_are_zeros_and_neighbours_stay(shared: bool) -> None:
    arena = Arena(64 * 4096, pinned=False, shared=shared)
    before, lease, after = (arena.lease(n) for n in (1000, 20 * 4096, 1000))
    for piece in (before, lease, after):
        piece.numpy((piece.nbytes,))[:] = 7
    lease.drop_pages()
    assert (before.numpy((1000,)) == 7).all()
    assert (after.numpy((1000,)) == 7).all()
    contents = lease.numpy((20 * 4096,))
    assert (contents == 0).sum() >= 18 * 4096
    contents[:] = 9
    assert (after.numpy((1000,)) == 7).all()
    for piece in (before, lease, after):
        piece.give_back()


def test_room_made_by_a_view_that_goes_is_told() -> None:
    arena = Arena(8 * 256, pinned=False)
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    arena.tell(bell)
    lease = arena.lease(2 * 256)
    view = lease.tensor((512,))
    lease.give_back()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(bell)
    assert arena.stats().lendable == 6 * 256 == arena.stats().largest_free
    other = arena.lease(256)
    assert arena.stats().lendable == 6 * 256 > arena.stats().largest_free
    other.give_back()
    del view
    assert os.eventfd_read(bell) == 1
    assert arena.try_lease(8 * 256) is not None
    arena.tell(None)
    os.close(bell)
