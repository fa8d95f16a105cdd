"""Where caching, sparse attention and capture hook into sampling, and where they keep things.

B batch, T text tokens, V video tokens, L = T + V, D width.
"""

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn

from vidgen.models.mmdit.model import Context, Stream, call_block
from vidgen.runtime.attention import attention
from vidgen.runtime.attention.mask import BlockMask

# (branch, block, name); a block of -1 stands for the whole pass
StateKey = tuple[str, int, str]
State = MutableMapping[StateKey, Tensor]
RunBlock = Callable[[int, nn.Module, Stream, Context], Stream]


class StateStore:
    """What is kept from one pass of the model to the next, apart for every request.

    It is gone when the request ends, however it ends; nothing is ever kept on a module.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self._held: dict[int, State] = {}

    @contextmanager
    def request(self) -> Iterator[tuple[int, State]]:
        number = next(self._numbers)
        self._held[number] = {}
        try:
            yield number, self._held[number]
        finally:
            del self._held[number]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for state in self._held.values() for t in state.values())


@dataclass(frozen=True)
class Moment:
    """Which pass of the model this is: decisions are made from it, alike on every rank."""

    request: int  # no other request of this pipeline has the same
    number: int  # of the guided velocity within the request
    step: int
    steps: int
    t: float
    branch: str
    grid: tuple[int, int, int]  # video tokens
    text_length: int
    state: State = field(repr=False, compare=False)


@dataclass(frozen=True)
class Hooks:
    """What a method does at the seams; what is left out costs nothing.

    Streams are (text_BTD, video_BVD) at every block, dual or single.
    """

    # Before a block: a stream that stands in for its output, or None to run it.
    inject: Callable[[Moment, int, Stream], Stream | None] | None = None
    # After a block: what goes on to the next.
    capture: Callable[[Moment, int, Stream], Stream] | None = None
    # The attention mask of a block over [text, video] tokens, or None.
    mask: Callable[[Moment, int], BlockMask | None] | None = None


NO_HOOKS = Hooks()


def hooked(hooks: Hooks, moment: Moment, run: RunBlock = call_block) -> RunBlock:
    """`run` with the hooks around it."""
    if hooks == NO_HOOKS:
        return run

    def run_block(index: int, block: nn.Module, stream: Stream, context: Context) -> Stream:
        # A single-stream block reads both in one tensor; hooks see them apart.
        joint = len(stream) == 1

        def apart(stream: Stream) -> Stream:
            sizes = (moment.text_length, stream[0].shape[1] - moment.text_length)
            return stream[0].split(sizes, dim=1) if joint else stream

        def as_block(pair: Stream) -> Stream:
            return (torch.cat(pair, dim=1),) if joint else pair

        if hooks.inject is not None:
            given = hooks.inject(moment, index, apart(stream))
            if given is not None:
                return as_block(given)
        if hooks.mask is not None:
            mask = hooks.mask(moment, index)
            if mask is not None:
                if context.attention is not attention:
                    raise ValueError("an attention mask does not go with context parallelism")
                context = replace(context, attention=partial(attention, mask=mask))
        out = run(index, block, stream, context)
        return out if hooks.capture is None else as_block(hooks.capture(moment, index, apart(out)))

    return run_block
