"""Where caching, sparse attention and capture hook into sampling, and where they keep tensors.

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
    """Tensors kept from one pass of the model to the next, separately for each request.

    They are dropped when the request ends, however it ends; nothing is kept on a module.
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
class ModelPass:
    """Which pass of the model this is: hooks decide from it, the same on every rank."""

    request: int  # no other request of this pipeline has the same
    evaluation: int  # of the guided velocity, counted over the request
    step: int
    steps: int
    t: float
    branch: str
    grid: tuple[int, int, int]  # video tokens
    text_length: int
    state: State = field(repr=False, compare=False)


@dataclass(frozen=True)
class Hooks:
    """What a method does around each block; a hook that is None costs nothing.

    Streams are (text_BTD, video_BVD) at every block, dual or single.
    """

    # Before a block: a stream that stands in for its output, or None to run it.
    inject: Callable[[ModelPass, int, Stream], Stream | None] | None = None
    # After a block: what the next one receives.
    capture: Callable[[ModelPass, int, Stream], Stream] | None = None
    # The attention mask of a block over [text, video] tokens, or None.
    mask: Callable[[ModelPass, int], BlockMask | None] | None = None


NO_HOOKS = Hooks()


def hooked(hooks: Hooks, current: ModelPass, run: RunBlock = call_block) -> RunBlock:
    """`run` with the hooks around it."""
    if hooks == NO_HOOKS:
        return run

    def run_block(index: int, block: nn.Module, stream: Stream, context: Context) -> Stream:
        joint = len(stream) == 1  # a single-stream block reads text and video in one tensor
        pair = _split(stream[0], current.text_length) if joint else stream
        out = None if hooks.inject is None else hooks.inject(current, index, pair)
        if out is not None:
            return (torch.cat(out, dim=1),) if joint else out
        mask = None if hooks.mask is None else hooks.mask(current, index)
        if mask is not None:
            if context.attention is not attention:
                raise ValueError("an attention mask does not work with context parallelism")
            context = replace(context, attention=partial(attention, mask=mask))
        out = run(index, block, stream, context)
        if hooks.capture is None:
            return out
        pair = _split(out[0], current.text_length) if joint else out
        pair = hooks.capture(current, index, pair)
        return (torch.cat(pair, dim=1),) if joint else pair

    return run_block


def _split(joint_BLD: Tensor, text_length: int) -> Stream:
    return joint_BLD.split((text_length, joint_BLD.shape[1] - text_length), dim=1)
