"""What a video is given: captions' ends, masks, latents, and how long it must be."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import get_args

import pytest
import torch
from torch import Tensor

from vidgen.diffusion.conditions import (
    caption,
    choose_condition,
    clip_frames,
    condition_channels,
    cut_pieces,
    frames_needed,
    given_latents,
    given_parts,
)
from vidgen.diffusion.config import ConditionConfig, ConditionName
from vidgen.models.geometry import Geometry

NAMES: tuple[ConditionName, ...] = get_args(ConditionName)


class Means:
    """Latents are means over blocks; `causal` as in the two kinds of video autoencoder."""

    latent_channels = 3
    compression = (4, 8, 8)

    def __init__(self, causal: bool) -> None:
        self.causal = causal
        self.seen: list[tuple[int, list[int]]] = []

    def encode(self, video_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor:
        x = video_BCTHW
        self.seen.append((x.shape[2], list(seeds)))
        if self.causal:
            x = torch.cat([x[:, :, :1].expand(-1, -1, 4, -1, -1), x[:, :, 1:]], dim=2)
        elif x.shape[2] == 1:
            x = x.expand(-1, -1, 4, -1, -1)
        return torch.nn.functional.avg_pool3d(x, self.compression)

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        raise AssertionError("conditions decode nothing")


def clip(frames: int) -> Tensor:
    """Frame n is grey at level n + 1."""
    return (torch.arange(frames) + 1.0)[None, :, None, None].expand(3, -1, 8, 16)


# Latent frames given, and their values, of a clip whose frame n is n + 1.
GIVEN = {
    "t2v": {},
    "i2v_head": {0: 1.0},
    "i2v_tail": {-1: 61.0},
    "i2v_loop": {0: 1.0, -1: 61.0},
    "v2v_head": {0: 1.0, 1: 3.5, 8: 31.5},
    # Encoded by itself: its own first frame is a latent alone.
    "v2v_tail": {-9: 29.0, -8: 31.5, -1: 59.5},
}


@pytest.mark.parametrize("name", NAMES)
def test_mask_and_latents(name: ConditionName) -> None:
    ae, video = Means(causal=True), clip(61)
    grid = Geometry.of(ae).latent_grid(61, 8, 16)
    assert grid == (16, 1, 2)
    mask, latents = given_latents(name, cut_pieces(name, video, ae), ae, grid, seed=5)
    assert (mask.shape, latents.shape) == ((1, 16, 1, 2), (3, 16, 1, 2))
    count = {"t2v": 0, "i2v_loop": 2}.get(name, 1 if name.startswith("i2v") else 9)
    assert int(mask[0, :, 0, 0].sum()) == count
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert not latents[:, mask[0, :, 0, 0] == 0].any()
    for place, value in GIVEN[name].items():
        assert mask[0, place].min() == 1
        torch.testing.assert_close(latents[:, place], torch.full((3, 1, 2), value))
    assert ae.seen == [(frames, [5]) for _, frames in given_parts(name, ae)]


def test_clips_of_an_autoencoder_that_is_not_causal() -> None:
    ae = Means(causal=False)
    assert clip_frames(ae) == 32
    mask, latents = given_latents(
        "v2v_tail", cut_pieces("v2v_tail", clip(40), ae), ae, (10, 1, 2), 0
    )
    assert mask[0, :, 0, 0].tolist() == [0] * 2 + [1] * 8
    torch.testing.assert_close(
        latents[0, :, 0, 0], torch.tensor([0, 0, *(n * 4 + 10.5 for n in range(8))])
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_shortest_clip_leaves_something_to_generate(name: ConditionName, causal: bool) -> None:
    ae = Means(causal)
    needed = frames_needed(name, ae)
    fit = []
    for frames in (needed - ae.compression[0], needed):
        if frames < 1:
            continue
        try:
            grid = Geometry.of(ae).latent_grid(frames, 8, 16)
            mask, _ = given_latents(name, cut_pieces(name, clip(frames), ae), ae, grid, 0)
        except ValueError:
            fit.append(False)
        else:
            fit.append(bool((mask == 0).any()))
    assert fit[-1]
    assert not any(fit[:-1])


def test_pieces_of_another_length_are_refused() -> None:
    ae = Means(causal=True)
    with pytest.raises(ValueError, match="v2v_head is given 33 frames at its head, not 21"):
        given_latents("v2v_head", [clip(21)], ae, (10, 1, 2), 0)
    with pytest.raises(ValueError, match="shorter"):
        given_latents("i2v_loop", [clip(1)], ae, (4, 1, 2), 0)


def test_channels_are_the_mask_and_what_it_lets_through() -> None:
    mask = torch.zeros(1, 1, 3, 1, 1)
    mask[:, :, 1] = 1
    latents = torch.randn(1, 4, 3, 1, 1)
    channels = condition_channels(mask, latents)
    assert channels.shape == (1, 5, 3, 1, 1)
    assert torch.equal(channels[:, :1], mask)
    assert torch.equal(channels[:, 1:, 1], latents[:, :, 1])
    assert not channels[:, 1:, 0].any()


def test_captions_end_as_in_training() -> None:
    assert caption("a cat", 24.0, 4.2) == "a cat 24 FPS, 4 motion score."
    assert caption("a cat", 23.976, None) == "a cat 23.976 FPS."
    assert caption("a cat", None, 7.0) == "a cat 7 motion score."
    assert caption("a cat", None, None) == "a cat"


def test_condition_weights_must_choose_something() -> None:
    with pytest.raises(ValueError, match="condition weights are all zero"):
        ConditionConfig(weights={"t2v": 0.0})


def chosen(config: ConditionConfig, frames: int, causal: bool = True) -> dict[str, float]:
    rng, draws = random.Random(3), 4000
    ae = Means(causal)
    found = Counter(choose_condition(config, frames, ae, rng) for _ in range(draws))
    return {name: count / draws for name, count in found.items()}


@pytest.mark.parametrize("frames", [5, 9, 33, 129])
def test_image_dropout_is_the_same_for_all_clips_that_can_be_given_frames(frames: int) -> None:
    """In the public code the two conditions that fit 5 frames leave t2v 1/7, not 1/8."""
    config = ConditionConfig(
        weights={"i2v_head": 5, "i2v_loop": 1, "i2v_tail": 1}, drop_image=0.125
    )
    found = chosen(config, frames)
    assert found["t2v"] == pytest.approx(0.125, abs=0.02)
    fits = 7 if frames > 5 else 6
    assert found["i2v_head"] == pytest.approx(0.875 * 5 / fits, abs=0.03)
    assert chosen(config, 1) == {"t2v": 1.0}


def test_without_a_dropout_the_weights_decide() -> None:
    config = ConditionConfig(weights={"t2v": 1, "i2v_head": 5, "i2v_loop": 1, "i2v_tail": 1})
    assert chosen(config, 5)["t2v"] == pytest.approx(1 / 7, abs=0.02)
    assert chosen(config, 129)["t2v"] == pytest.approx(1 / 8, abs=0.02)


def test_two_ways_to_say_the_dropout_are_refused() -> None:
    with pytest.raises(ValueError, match="remove t2v from weights or set drop_image to null"):
        ConditionConfig(weights={"t2v": 1, "i2v_head": 7}, drop_image=0.125)
