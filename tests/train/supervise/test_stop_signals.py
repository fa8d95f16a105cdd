import os
import signal
from collections.abc import Iterator

import pytest

from vidgen.train.supervise.stop_signals import StopSignals


@pytest.fixture(autouse=True)
def noted() -> Iterator[list[int]]:
    """Stands for what the signals do outside: a list of those that came."""
    seen: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda n, frame: seen.append(n)) for number in numbers]
    yield seen
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish_the_second_acts(
    number: signal.Signals, noted: list[int]
) -> None:
    with StopSignals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received is number
        assert noted == []
        os.kill(os.getpid(), number)
        assert noted == [number]
    os.kill(os.getpid(), number)
    assert noted == [number, number]


def test_everything_is_as_before_even_after_an_error(noted: list[int]) -> None:
    with pytest.raises(KeyError), StopSignals():
        raise KeyError
    os.kill(os.getpid(), signal.SIGINT)
    assert noted == [signal.SIGINT]


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
