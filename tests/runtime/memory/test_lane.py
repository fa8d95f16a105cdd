from typing import Any

import pytest
import torch

from vidgen.runtime.memory import HOST, Arena, Lane, LeaseError, SimulatedEngine

SEEDS = range(20)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_copy_arrives_by_the_time_it_is_read(seed: int) -> None:
    lane = Lane("cpu", engine=SimulatedEngine(seed, latency_s=0.0005))
    tickets = [lane.to_device(torch.full((5,), i), producer=HOST, lease=None) for i in range(6)]
    for i in (4, 0, 5, 2):
        assert tickets[i].read(HOST).tolist() == [i] * 5
    assert all(t.done() for t in tickets)


def test_copies_are_late_and_in_an_order_the_seed_decides() -> None:
    orders = set()
    for seed in SEEDS:
        engine = SimulatedEngine(seed)
        lanes = [Lane("cpu", engine=engine) for _ in range(3)]
        destination = [torch.zeros(1) for _ in lanes]
        tickets = [
            lane.copy(torch.ones(1), dst, producer=HOST, lease=None)
            for lane, dst in zip(lanes, destination, strict=True)
        ]
        assert [float(dst) for dst in destination] == [0, 0, 0]  # nothing has moved yet
        order: list[int] = []
        while len(order) < 3:
            tickets[0].done()
            order += [i for i, d in enumerate(destination) if float(d) and i not in order]
            if tickets[0].done():
                tickets[1].done(), tickets[2].done()
        orders.add(tuple(order))
    assert len(orders) > 2


def test_a_lane_keeps_its_order() -> None:
    for seed in SEEDS:
        engine = SimulatedEngine(seed)
        lane, other = Lane("cpu", engine=engine), Lane("cpu", engine=engine)
        target = torch.zeros(1)
        for value in range(5):
            other.copy(torch.zeros(1), torch.zeros(1), producer=HOST, lease=None)
            last = lane.copy(torch.full((1,), float(value)), target, producer=HOST, lease=None)
        assert float(last.read(HOST)) == 4


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shared", [True, False])
def test_a_copy_waits_for_the_ticket_it_follows(seed: int, shared: bool) -> None:
    engine = SimulatedEngine(seed)
    first = Lane("cpu", engine=engine)
    second = Lane("cpu", engine=engine if shared else SimulatedEngine(seed))
    middle, end = torch.zeros(3), torch.zeros(3)
    ticket = first.copy(torch.ones(3), middle, producer=HOST, lease=None)
    result = second.copy(middle, end, producer=ticket, lease=None)
    assert result.read(HOST).tolist() == [1, 1, 1]


def test_reading_without_the_ticket_gives_wrong_bytes() -> None:
    """The simulation is strict: without the second edge the old contents are seen."""
    lane = Lane("cpu")
    target = torch.zeros(3)
    lane.copy(torch.ones(3), target, producer=HOST, lease=None)
    assert target.tolist() == [0, 0, 0]


def test_reusing_the_source_before_the_ticket_corrupts_the_copy() -> None:
    lane = Lane("cpu")
    source = torch.ones(3)
    ticket = lane.to_device(source, producer=HOST, lease=None)
    source.zero_()
    assert ticket.read(HOST).tolist() == [0, 0, 0]


def test_both_edges_are_asked_for() -> None:
    lane = Lane("cpu")
    with pytest.raises(TypeError):
        lane.to_device(torch.ones(1), lease=None)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="the producer is a CUDA stream, a ticket or HOST"):
        lane.to_device(torch.ones(1), producer=None, lease=None)  # type: ignore[arg-type]
    ticket = lane.to_device(torch.ones(1), producer=HOST, lease=None)
    with pytest.raises(TypeError):
        ticket.read()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="the consumer is a CUDA stream or HOST"):
        ticket.read(None)  # type: ignore[arg-type]


def test_shapes_and_types_must_match() -> None:
    lane = Lane("cpu")
    for dst in (torch.ones(2), torch.ones(3, dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"copy of torch\.float32"):
            lane.copy(torch.ones(3), dst, producer=HOST, lease=None)


def test_bytes_move_as_they_lie() -> None:
    lane = Lane("cpu")
    turned = torch.arange(24.0).view(2, 3, 4).transpose(0, 2)
    assert torch.equal(lane.to_device(turned, producer=HOST, lease=None).read(HOST), turned)
    for src, dst in (
        (turned, torch.zeros(4, 3, 2)),
        (torch.zeros(4, 6)[:, ::2], torch.zeros(4, 6)[:, ::2]),
        (torch.zeros(3).expand(2, 3), torch.zeros(3).expand(2, 3)),
    ):
        with pytest.raises(ValueError, match="make it contiguous first"):
            lane.copy(src, dst, producer=HOST, lease=None)


def test_a_lease_under_copy_cannot_be_given_back_early() -> None:
    arena = Arena(256, pinned=False)
    lane = Lane("cpu", engine=SimulatedEngine(latency_s=60))
    lease = arena.lease(12)
    ticket = lane.to_device(lease.tensor((12,)), producer=HOST, lease=lease)
    with pytest.raises(LeaseError, match="returned early, a copy still uses it"):
        lease.give_back()
    lease.give_back(after=ticket)
    assert arena.try_lease(256) is None  # still held by the copy


@pytest.mark.parametrize("seed", SEEDS)
def test_slots_are_never_reused_under_a_copy(seed: int) -> None:
    """A ring of two slots feeding a slow lane: every value arrives whole."""
    arena = Arena(2 * 256, pinned=False)
    lane = Lane("cpu", engine=SimulatedEngine(seed, latency_s=0.0002))
    tickets: list[Any] = []
    for value in range(12):
        lease = arena.lease(200, timeout=20)
        slot = lease.tensor((200,))
        slot.fill_(value)
        tickets.append(lane.to_device(slot, producer=HOST, lease=lease))
        lease.give_back(after=tickets[-1])
    for value, ticket in enumerate(tickets):
        assert (ticket.read(HOST) == value).all()
    assert arena.stats().waits > 0
    arena.close()


def test_a_cuda_lane_refuses_a_simulated_engine() -> None:
    with pytest.raises(ValueError, match="not a simulated one"):
        Lane("cuda", engine=SimulatedEngine())


@pytest.mark.gpu
def test_there_and_back_on_cuda() -> None:
    arena, lane = Arena(1 << 24), Lane("cuda")
    up, down = arena.lease(1 << 22), arena.lease(1 << 22)
    source = up.tensor((1 << 22,))
    source.random_(0, 256)
    wanted = source.clone()
    there = lane.to_device(source, producer=HOST, lease=up)
    up.give_back(after=there)
    stream = torch.cuda.current_stream()
    doubled = there.read(stream) ^ 255
    back = lane.copy(doubled, down.tensor((1 << 22,)), producer=stream, lease=down)
    assert torch.equal(back.read(HOST), wanted ^ 255)
    down.give_back(after=back)
    arena.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_large_copy_is_whole_at_any_address(threads: int) -> None:
    """Its ends are no multiple of what vector stores write."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        lane = Lane("cpu")
    finally:
        torch.set_num_threads(before)
    src = torch.randint(0, 256, ((3 << 20) + 41,), dtype=torch.uint8)
    whole = torch.zeros(src.numel() + 64, dtype=torch.uint8)
    for first in (0, 1, 15, 33):
        whole.zero_()
        part = whole[first : first + src.numel() - 7]
        assert torch.equal(lane.copy(src[7:], part, producer=HOST, lease=None).read(HOST), src[7:])
        assert not whole[:first].any()
        assert not whole[first + part.numel() :].any()
