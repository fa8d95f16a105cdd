"""Named ranges for profilers (NVTX for nsys, record_function for torch), free while off."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

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
    # Asked at each range: CUDA must not be initialised for a run that does not use it.
    nvtx = torch.cuda.is_initialized()
    if nvtx:
        torch.cuda.nvtx.range_push(name)
    try:
        with torch.profiler.record_function(name):
            yield
    finally:
        if nvtx:
            torch.cuda.nvtx.range_pop()
