"""A thread that makes results before they are asked for."""

import itertools
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vidgen.data.prefetch import Prefetcher

CPU = torch.device("cpu")


def ahead(
    make: Callable[[], Tensor], most: int = 2, device: torch.device = CPU
) -> Prefetcher[Tensor]:
    return Prefetcher(make, lambda made: [made], most, device)


def test_results_come_in_order_and_so_many_ahead() -> None:
    made: list[int] = []
    reached = {number: threading.Event() for number in range(20)}

    def make() -> Tensor:
        number = len(made)
        made.append(number)
        reached[number].set()
        return torch.tensor(number)

    source = ahead(make, most=3)
    for number in range(10):
        assert reached[number + 2].wait(30)  # made before they are asked for
        assert len(made) <= number + 3
        assert int(source.next()) == number
    source.close()
    assert len(made) <= 13


def test_what_fails_is_raised_in_its_place_and_again() -> None:
    numbers = iter([1, 2])

    def make() -> Tensor:
        return torch.tensor(next(numbers))

    source = ahead(make, most=5)
    assert [int(source.next()) for _ in range(2)] == [1, 2]
    for _ in range(2):
        with pytest.raises(StopIteration):
            source.next()
    source.close()


def test_its_end_waits_for_the_result_under_way() -> None:
    begun, go_on, ended = (threading.Event() for _ in range(3))

    def make() -> Tensor:
        begun.set()
        assert go_on.wait(30)
        ended.set()
        return torch.zeros(1)

    source = ahead(make, most=1)
    assert begun.wait(30)
    threading.Timer(0.05, go_on.set).start()
    source.close()
    assert ended.is_set()
    assert not any(thread.name == "vidgen-ahead" for thread in threading.enumerate())


@pytest.mark.gpu
def test_a_result_is_complete_for_whoever_asked() -> None:
    """Each takes long on the side stream; read at once on the current one, again and again, so that
    its memory is used anew."""
    device = torch.device("cuda")
    numbers = itertools.count()
    big = torch.eye(2048, device=device)
    torch.cuda.synchronize()
    main = torch.cuda.current_stream()
    streams = []

    def make() -> Tensor:
        streams.append(torch.cuda.current_stream())
        x = torch.full((2048, 2048), float(next(numbers)), device=device)
        for _ in range(20):
            x = x @ big
        return x

    source = ahead(make, most=3, device=device)
    for number in range(50):
        got = source.next()
        assert (got == number).all()
        del got
    source.close()
    assert main not in streams
