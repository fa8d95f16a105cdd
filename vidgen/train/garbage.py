"""Garbage collection between steps: by itself it would stop one at random."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 200  # steps


@contextmanager
def rare_collections() -> Iterator[Callable[[int], None]]:
    """Within it, garbage is collected where the function given is called with such a step; what
    stands at the beginning is never looked at again."""

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
