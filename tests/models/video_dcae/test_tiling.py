"""Tiles cover everything once, fade into each other, and bound the memory."""

from dataclasses import replace
from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vidgen.models.video_dcae import VideoDCAE
from vidgen.models.video_dcae.tiling import fades, in_tiles, spans

from .test_model import TINY, golden, video


@given(
    length=st.integers(1, 60),
    tile=st.integers(1, 12),
    overlap=st.floats(0, 0.95),
    scale=st.integers(1, 4),
)
def test_tiles_cover_an_axis_and_their_weights_add_up_to_one(
    length: int, tile: int, overlap: float, scale: int
) -> None:
    axis = spans(length, tile, overlap)
    assert axis[0].start == 0
    assert axis[-1].stop == length
    assert {span.stop - span.start for span in axis} == {min(tile, length)}
    assert all(a.start < b.start <= a.stop for a, b in pairwise(axis))
    total = torch.zeros(length * scale)
    for span, weight in zip(axis, fades(axis, scale), strict=True):
        assert (weight > 0).all()
        total[span.start * scale : span.stop * scale] += weight
    torch.testing.assert_close(total, torch.ones_like(total))


def double(x: Tensor) -> Tensor:
    """Looks at nothing but its own position: tiles must not be seen at all."""
    return 2 * x.repeat_interleave(4, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)


def test_what_looks_at_its_own_position_alone_comes_out_the_same() -> None:
    x = torch.randn(2, 3, 5, 7, 9)
    tiled = in_tiles(double, x, (3, 20, 14, 18), tile=(2, 3, 4), overlap=0.25)
    torch.testing.assert_close(tiled, double(x))


def test_every_tile_has_the_same_size_and_none_is_larger() -> None:
    seen: list[tuple[int, ...]] = []

    def watch(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return double(x)

    in_tiles(watch, torch.randn(1, 3, 5, 7, 9), (3, 20, 14, 18), tile=(2, 3, 4), overlap=0.25)
    assert set(seen) == {(1, 3, 2, 3, 4)}
    assert len(seen) == 4 * 3 * 3


def test_a_video_within_a_tile_is_not_cut() -> None:
    model, tensors = golden()
    calls: list[torch.Size] = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape))
    model.encode(tensors["input"])
    assert calls == [tensors["input"].shape]


def whole_and_tiled(**changes: object) -> tuple[VideoDCAE, VideoDCAE]:
    tiled, _ = golden()
    whole, _ = golden()
    tiled.config = replace(TINY, **changes)
    whole.config = replace(TINY, tiling=False)
    return whole, tiled


def test_seams_are_no_larger_than_what_a_tile_does_not_know() -> None:
    """Attention is global, so a tile differs from the whole; blended, it differs the less.

    The bound: blending must not be worse than the tiles themselves, side by side without overlap,
    and no step across a seam may stand out from the steps elsewhere.
    """
    whole, blended = whole_and_tiled(tile_overlap=0.25)
    _, apart = whole_and_tiled(tile_overlap=0.0)
    clip = video(12, 64, 160)
    latent = whole.encode(clip)
    errors = [(model.encode(clip) - latent).norm() / latent.norm() for model in (blended, apart)]
    assert 0 < errors[0] <= errors[1] < 0.5
    expected = whole.decode(latent)
    errors = [(m.decode(latent) - expected).norm() / expected.norm() for m in (blended, apart)]
    assert 0 < errors[0] <= errors[1] < 0.5

    difference = blended.decode(latent) - expected
    steps = difference.diff(dim=4).abs().mean(dim=(0, 1, 2, 3))
    seams = [48, 64, 80, 96, 112, 128]  # where a tile starts or ends, in pixels
    assert max(steps[s - 1] for s in seams) < 3 * steps.mean()


def test_peak_memory_is_that_of_a_tile() -> None:
    """What the blocks see, whatever the video's size."""
    _, model = whole_and_tiled()
    largest = [0]

    def watch(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        largest[0] = max(largest[0], output.numel())

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(watch)
    model.encode(video(8, 64, 64))
    one = largest[0]
    model.decode(model.encode(video(12, 64, 128)))
    assert largest[0] <= 2 * one  # the decoder's largest is a little wider than the encoder's
