"""Garbage collection between steps: left alone, its pauses hit steps unpredictably."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 200  # steps


@contextmanager
def collected_between_steps() -> Iterator[Callable[[int], None]]:
    """Within it, garbage is collected only by the yielded function, every `EVERY` steps; objects
    alive at the start are frozen."""

    def collect(step: int) -> None:
        if step % EVERY == 0:
            gc.collect()

    collecting = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        yield collect
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
