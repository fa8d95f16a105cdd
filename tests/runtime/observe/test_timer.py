"""Phases add up to the step, exclusive of one another, by the host's clock or the device's."""

import time

import pytest
import torch

from vidgen.runtime.observe import timer as module
from vidgen.runtime.observe.timer import StepTimer


class Clock:
    """Time that moves only when told, in seconds as perf_counter, in ms as an event."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module.time, "perf_counter", clock.perf_counter)
    return clock


def test_phases_are_exclusive_and_add_up(clock):
    timer = StepTimer("cpu")
    clock.now += 1
    with timer.phase("forward"):
        clock.now += 2
        with timer.phase("encode"):
            clock.now += 4
        clock.now += 8
    with timer.phase("backward"):
        clock.now += 16
    with timer.phase("forward"):
        clock.now += 32
    clock.now += 64
    phases = timer.lap()
    assert phases == {
        "forward": 42_000,
        "encode": 4000,
        "backward": 16_000,
        "other": 65_000,
    }
    assert list(phases)[-1] == "other"


def test_laps_leave_no_gap(clock):
    timer = StepTimer("cpu")
    clock.now += 1
    assert timer.lap() == {"other": 1000}
    clock.now += 2
    assert timer.lap() == {"other": 2000}


def test_restart_forgets(clock):
    timer = StepTimer("cpu")
    with timer.phase("data"):
        clock.now += 5
    timer.restart()
    clock.now += 1
    assert timer.lap() == {"other": 1000}


def test_phase_ends_with_an_exception(clock):
    timer = StepTimer("cpu")

    def fail():
        clock.now += 1
        raise RuntimeError

    with pytest.raises(RuntimeError), timer.phase("forward"):
        fail()
    clock.now += 2
    assert timer.lap() == {"forward": 1000, "other": 2000}


def test_lap_inside_a_phase_is_refused():
    timer = StepTimer("cpu")
    with timer.phase("forward"):
        with pytest.raises(ValueError, match="forward"):
            timer.lap()
        with pytest.raises(ValueError, match="forward"):
            timer.restart()


def test_real_time_is_attributed():
    timer = StepTimer("cpu")
    began = time.perf_counter()
    with timer.phase("data"):
        time.sleep(0.03)
    phases = timer.lap()
    wall = 1000 * (time.perf_counter() - began)
    assert phases["data"] >= 30
    assert sum(phases.values()) == pytest.approx(wall, abs=5)


class SimulatedStream:
    """A device queue: kernels take device time, events are stamped when the queue gets there."""

    def __init__(self):
        self.host = 0.0
        self.device = 0.0

    def launch(self, ms):
        self.device = max(self.device, self.host) + ms

    def event(self, enable_timing):
        assert enable_timing
        return SimulatedEvent(self)


class SimulatedEvent:
    def __init__(self, stream):
        self.stream = stream
        self.synchronized = False

    def record(self, stream):
        self.at = max(stream.device, stream.host)

    def synchronize(self):
        self.stream.host = max(self.stream.host, self.at)

    def elapsed_time(self, other):
        assert other.at <= self.stream.host, "read before the device got there"
        return other.at - self.at


def test_device_time_counts_where_it_runs(monkeypatch):
    stream = SimulatedStream()
    monkeypatch.setattr(torch.cuda, "Event", stream.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    timer = StepTimer("cuda")
    with timer.phase("data"):
        stream.host += 10  # nothing queued: the device idles, data is to blame
    with timer.phase("forward"):
        stream.launch(100)  # the launch returns at once
    with timer.phase("data"):
        stream.host += 40  # hidden behind the forward pass
    with timer.phase("backward"):
        stream.launch(200)
    assert timer.lap() == {"data": 10, "forward": 100, "backward": 200, "other": 0}
    assert stream.host == 310


@pytest.mark.gpu
def test_device_time_on_a_gpu():
    x = torch.randn(4096, 4096, device="cuda")
    for _ in range(3):
        x @ x
    torch.cuda.synchronize()
    timer = StepTimer("cuda")
    began = time.perf_counter()
    with timer.phase("forward"):
        for _ in range(50):
            x @ x
    with timer.phase("data"):
        pass
    phases = timer.lap()
    wall = 1000 * (time.perf_counter() - began)
    assert phases["forward"] > 10 * phases["data"]
    assert sum(phases.values()) == pytest.approx(wall, rel=0.1)
