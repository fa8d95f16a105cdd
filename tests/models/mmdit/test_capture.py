"""A block's output is captured unchanged, also with other hooks in the forward pass."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from vidgen.models.mmdit import PRESETS, MMDiT, Seams
from vidgen.models.mmdit.capture import Capture
from vidgen.models.mmdit.model import Context, Stream, call_block
from vidgen.runtime.memory.recompute import recompute

CONFIG = replace(
    PRESETS["tiny"], in_channels=6, patch_size=1, depth=2, vec_in_dim=5, context_in_dim=7
)
TEXT, GRID = 3, (2, 1, 3)


@pytest.fixture
def model() -> MMDiT:
    made = MMDiT(CONFIG)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made


@pytest.fixture
def given() -> dict[str, Any]:
    return {
        "x_BVD": torch.randn(2, 6, 6),
        "grid": GRID,
        "txt": torch.randn(2, TEXT, 7),
        "vec": torch.randn(2, 5),
        "t": torch.rand(2),
        "cond": torch.randn(2, 6, CONFIG.cond_channels),
    }


def again(index: int, block: nn.Module, stream: Stream, context: Context) -> Stream:
    result: Stream = recompute(call_block, index, block, stream, context)
    return result


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
@pytest.mark.parametrize("run_block", [call_block, again])
def test_a_layers_video_tokens_are_kept(
    model: MMDiT, given: dict[str, Any], layer: int, run_block: Callable[..., Stream]
) -> None:
    left: list[Stream] = []
    for block in (*model.double_blocks, *model.single_blocks):
        block.register_forward_hook(lambda _, __, out: left.append(out))
    capture = Capture(Seams(run_block=run_block), layer)
    out = model(**given, seams=capture.seams)
    video, part = capture.take()
    stream = left[layer - 1]
    expected = stream[1] if layer <= CONFIG.depth else stream[0][:, TEXT:]
    assert torch.equal(video, expected)
    assert (part.text, part.video) == (slice(0, TEXT), slice(0, 6))
    assert torch.equal(out, model(**given))


def test_gradients_reach_the_blocks_up_to_the_layer_and_none_after(
    model: MMDiT, given: dict[str, Any]
) -> None:
    capture = Capture(Seams(run_block=again), 3)
    model(**given, seams=capture.seams)
    capture.take()[0].square().sum().backward()
    after = ("single_blocks.1.", "final_layer.")
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(after), name


def test_compiled_blocks_are_seen_as_well(model: MMDiT, given: dict[str, Any]) -> None:
    plain, compiled = Capture(Seams(), 2), Capture(Seams(run_block=again), 2)
    model(**given, seams=plain.seams)
    expected, _ = plain.take()
    for block in (*model.double_blocks, *model.single_blocks):
        block.compile(backend="eager")
    model(**given, seams=compiled.seams)
    found, _ = compiled.take()
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    assert model.double_blocks[1].img_mlp[0].weight.grad is not None
    assert model.single_blocks[0].linear1.weight.grad is None


def test_what_was_taken_is_let_go(model: MMDiT, given: dict[str, Any]) -> None:
    capture = Capture(Seams(), 1)
    with pytest.raises(ValueError, match="no forward pass has reached layer 1"):
        capture.take()
    model(**given, seams=capture.seams)
    capture.take()
    with torch.no_grad():  # a validation's
        model(**given, seams=capture.seams)
    with pytest.raises(ValueError, match="since the last take"):
        capture.take()
