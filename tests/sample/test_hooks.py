"""State and hooks at block boundaries: seen alike everywhere, gone with their request."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from vidgen.models.mmdit.model import Stream
from vidgen.runtime.attention.mask import BlockMask
from vidgen.sample import Pipeline, Request, make_requests
from vidgen.sample.hooks import Hooks, ModelPass, StateStore

Make = Callable[..., Pipeline]


@pytest.fixture
def two(pipeline: Pipeline) -> list[Request]:
    """Requests of different shapes."""
    (small,) = make_requests(pipeline, ["a red circle"], frames=5)
    return [small, replace(small, frames=9, height=48, seed=4, steps=3)]


def test_state_is_apart_for_every_request_and_ends_with_it() -> None:
    store = StateStore()
    with store.request() as (first, one), store.request() as (second, two):
        assert first != second
        one["text", 0, "x"] = torch.zeros(4)
        assert not two
        assert store.nbytes == 16
    assert store.nbytes == 0


def test_state_ends_with_a_request_that_fails(pipeline: Pipeline, two: list[Request]) -> None:
    def capture(current: ModelPass, block: int, stream: Stream) -> Stream:
        current.state[current.branch, block, "video"] = stream[1]
        assert pipeline.states.nbytes > 0
        raise KeyError("lost")

    pipeline.hooks = Hooks(capture=capture)
    with pytest.raises(KeyError, match="lost"):
        pipeline.generate(two)
    assert pipeline.states.nbytes == 0


def test_two_requests_one_after_the_other_do_not_see_each_other(
    pipeline: Pipeline, two: list[Request]
) -> None:
    """A method that keeps every block's output: in each request it begins with nothing, and finds
    the tensors of its own shape."""
    seen: list[ModelPass] = []
    found: list[bool] = []

    def capture(current: ModelPass, block: int, stream: Stream) -> Stream:
        seen.append(current)
        key = (current.branch, block, "video")
        before = current.state.get(key)
        found.append(before is not None)
        if before is not None:
            assert before.shape == stream[1].shape
        current.state[key] = stream[1]
        return stream

    plain = pipeline.generate(two)
    modules = {name: set(vars(m)) for name, m in pipeline.model.named_modules()}
    pipeline.hooks = Hooks(capture=capture)
    captured = pipeline.generate(two)
    assert all((a == b).all() for a, b in zip(plain, captured, strict=True))
    assert pipeline.states.nbytes == 0
    assert modules == {name: set(vars(m)) for name, m in pipeline.model.named_modules()}

    numbers = [m.request for m in seen]
    assert len(set(numbers)) == 2
    for number, request in zip(dict.fromkeys(numbers), two, strict=True):
        mine = [(m, f) for m, f in zip(seen, found, strict=True) if m.request == number]
        blocks = 2
        passes = [m for m, _ in mine[::blocks]]
        assert [m.step for m in passes] == sorted(m.step for m in passes)
        assert {m.steps for m, _ in mine} == {request.steps}
        # Only the first pass of each branch has nothing before it.
        branches = {m.branch for m, _ in mine}
        assert sum(not f for _, f in mine) == len(branches) * blocks


def test_hooks_see_text_and_video_apart_at_every_block(
    pipeline: Pipeline, two: list[Request]
) -> None:
    shapes = set()

    def capture(current: ModelPass, block: int, stream: Stream) -> Stream:
        shapes.add((block, stream[0].shape[1], stream[1].shape[1]))
        return stream

    pipeline.hooks = Hooks(capture=capture)
    pipeline.generate(two[:1])
    tokens = 2 * 2 * 2
    assert shapes == {(0, 12, tokens), (1, 12, tokens)}


def test_what_is_injected_takes_a_blocks_place(pipeline: Pipeline, two: list[Request]) -> None:
    ran: list[int] = []
    blocks = [*pipeline.model.double_blocks, *pipeline.model.single_blocks]
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))

    def inject(current: ModelPass, block: int, stream: Stream) -> Stream | None:
        return stream if block == 1 else None

    (plain,) = pipeline.generate(two[:1])
    ran.clear()
    pipeline.hooks = Hooks(inject=inject)
    (without,) = pipeline.generate(two[:1])
    assert set(ran) == {0}
    assert (plain != without).any()


def test_a_cache_of_every_blocks_output_injects_what_it_captured(
    pipeline: Pipeline, two: list[Request]
) -> None:
    """In a solver that evaluates twice a step, the second time from the first's blocks."""
    used: list[int] = []

    def inject(current: ModelPass, block: int, stream: Stream) -> Stream | None:
        if current.evaluation % 2 == 0:
            return None
        used.append(current.evaluation)
        return (current.state["all", block, "text"], current.state["all", block, "video"])

    def capture(current: ModelPass, block: int, stream: Stream) -> Stream:
        current.state["all", block, "text"], current.state["all", block, "video"] = stream
        return stream

    pipeline.hooks = Hooks(inject=inject, capture=capture)
    request = replace(two[0], solver="rf_taylor", guidance=1.0)  # one branch
    pipeline.generate([request])
    assert sorted(set(used)) == [2 * n + 1 for n in range(request.steps)]


@pytest.mark.parametrize("masked", [False, True])
def test_the_attention_mask_is_asked_for_at_every_block(
    pipeline: Pipeline, two: list[Request], masked: bool
) -> None:
    asked: list[int] = []
    lengths = torch.tensor([12])  # the text alone

    def mask(current: ModelPass, block: int) -> BlockMask | None:
        asked.append(block)
        return BlockMask.padding(lengths) if masked else None

    (plain,) = pipeline.generate(two[:1])
    pipeline.hooks = Hooks(mask=mask)
    (found,) = pipeline.generate(two[:1])
    assert asked[:4] == [0, 1, 0, 1]
    assert (found != plain).any() == masked


def test_seams_cost_nothing_when_unused(pipeline: Pipeline) -> None:
    from vidgen.models.mmdit.model import call_block
    from vidgen.sample.hooks import NO_HOOKS, hooked

    current: Any = None
    assert hooked(NO_HOOKS, current) is call_block
