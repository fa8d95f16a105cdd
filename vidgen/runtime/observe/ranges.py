"""Named ranges for profilers (NVTX for nsys, record_function for torch), free while off."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from types import ModuleType

import torch

_on = False
_NOTHING = nullcontext()


def span(name: str) -> AbstractContextManager[None]:
    """Mark what runs inside as `name` in a profile; a shared empty context while off."""
    return _marked(name) if _on else _NOTHING


@contextmanager
def recording() -> Iterator[None]:
    """Make `span` mark ranges inside this block."""
    global _on
    before, _on = _on, True
    try:
        yield
    finally:
        _on = before


@contextmanager
def _marked(name: str) -> Iterator[None]:
    push, pop = _nvtx()
    push(name)
    try:
        with torch.profiler.record_function(name):
            yield
    finally:
        pop()


def _nvtx() -> tuple[Callable[[str], object], Callable[[], object]]:
    """What begins and ends an NVTX range: the nvtx package's, which need no CUDA, or torch's.

    torch's are only used once CUDA is initialised: they must not initialise it.
    """
    if (package := _package()) is not None:
        return package.push_range, package.pop_range
    if torch.cuda.is_initialized():
        return torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop
    return (lambda name: None), (lambda: None)


@cache
def _package() -> ModuleType | None:
    try:
        import nvtx
    except ImportError:
        return None
    return nvtx
