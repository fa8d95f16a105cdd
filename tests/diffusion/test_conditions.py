"""What a video is given: captions' ends, masks, latents, and how long it must be."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from vidgen.diffusion.condition_names import NAMED
from vidgen.diffusion.conditions import (
    DoesNotFit,
    Piece,
    all_pieces,
    caption,
    choose_condition,
    condition_channels,
    cut_piece,
    fits,
    frames_needed,
    given_latents,
    piece_name,
    pieces_of,
)
from vidgen.diffusion.config import ConditionConfig
from vidgen.errors import UserError
from vidgen.models.geometry import Geometry


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


def given(name: str, frames: int, ae: Means, rng: Any = None) -> tuple[Tensor, Tensor]:
    """Mask and latents of a clip of so many frames."""
    video, pieces = clip(frames), pieces_of(name, frames, ae, rng)
    grid = Geometry.of(ae).latent_grid(frames, 8, 16)
    return given_latents(pieces, [cut_piece(p, video) for p in pieces], ae, grid, seed=5)


# Latent frames given, and their values, of a clip of 81 frames whose frame n is n + 1; by Means a
# latent frame is the mean of four, a causal encoder's first is its first frame.
GIVEN = {
    "t2v": {},
    "i2v_head": {0: 1.0},
    "i2v_tail": {20: 81.0},
    "i2v_loop": {0: 1.0, 20: 81.0},
    "i2v_middle": {10: 41.0},
    "v2v_head": {0: 1.0, **{n: 4 * n - 0.5 for n in range(1, 9)}},
    # Encoded by itself: its own first frame is a latent alone.
    "v2v_tail": {12: 49.0, **{n: 4 * n - 0.5 for n in range(13, 21)}},
    "v2v_head_easy": {0: 1.0, **{n: 4 * n - 0.5 for n in range(1, 17)}},
    "v2v_tail_easy": {4: 17.0, **{n: 4 * n - 0.5 for n in range(5, 21)}},
    # A frame lies at the latent frame that holds it: 1 to 4 at the first after the image.
    "frames@1": {1: 2.0},
    "frames@4": {1: 5.0},
    "frames@5": {2: 6.0},
    "frames@0,0.5,-1": {0: 1.0, 10: 41.0, 20: 81.0},
    "frames@-2,9": {3: 10.0, 20: 80.0},
    "every@32": {0: 1.0, 8: 33.0, 16: 65.0},
    "clip@0:33": {0: 1.0, **{n: 4 * n - 0.5 for n in range(1, 9)}},
    "clip@8:13": {2: 9.0, 3: 11.5},
    "clip@-5:": {19: 77.0, 20: 79.5},
    "clip@8:-8+frames@0": {0: 1.0, 2: 9.0, **{n: 4 * n - 0.5 for n in range(3, 19)}},
}


@pytest.mark.parametrize("name", GIVEN)
def test_mask_and_latents(name: str) -> None:
    ae = Means(causal=True)
    mask, latents = given(name, 81, ae)
    assert (mask.shape, latents.shape) == ((1, 21, 1, 2), (3, 21, 1, 2))
    expected = torch.zeros(21)
    for place, value in GIVEN[name].items():
        expected[place] = value
    assert torch.equal(mask[0, :, 0, 0], (expected > 0).float())
    torch.testing.assert_close(latents, expected[None, :, None, None].expand(3, -1, 1, 2))
    assert ae.seen == [(piece.frames, [5]) for piece in pieces_of(name, 81, ae)]


def test_every_named_condition_is_tested() -> None:
    assert NAMED.keys() <= GIVEN.keys()


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("i2v_middle", {5: 21.0}),
        ("frames@3,4", {0: 4.0, 1: 5.0}),
        ("v2v_head", {n: 4 * n + 2.5 for n in range(8)}),
        ("v2v_tail", {n + 2: 4 * n + 10.5 for n in range(8)}),
        ("clip@8:16", {2: 10.5, 3: 14.5}),
    ],
)
def test_an_autoencoder_that_is_not_causal(name: str, places: dict[int, float]) -> None:
    """It starts with four frames to a latent frame, and clips are multiples of four."""
    mask, latents = given(name, 40, Means(causal=False))
    expected = torch.zeros(10)
    for place, value in places.items():
        expected[place] = value
    assert torch.equal(mask[0, :, 0, 0], (expected > 0).float())
    torch.testing.assert_close(latents[0, :, 0, 0], expected)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", GIVEN)
def test_the_shortest_clip_leaves_something_to_generate(name: str, causal: bool) -> None:
    ae = Means(causal)
    if not causal and name in ("clip@0:33", "clip@8:13", "clip@-5:"):
        with pytest.raises(UserError, match="this autoencoder takes 1 or a multiple of 4"):
            frames_needed(name, ae)
        return
    needed = frames_needed(name, ae)
    lengths = [n for n in range(1, needed + 1) if Geometry.of(ae).takes(n)]
    assert [n for n in lengths if fits(name, n, ae)] == [needed]
    mask, _ = given(name, needed, ae)
    assert (mask == 0).any()


@pytest.mark.parametrize(
    ("name", "needed"), [("t2v", 1), ("i2v_head", 5), ("i2v_loop", 9), ("v2v_head", 37)]
)
def test_frames_needed(name: str, needed: int) -> None:
    assert frames_needed(name, Means(causal=True)) == needed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("frames@61,62", "frames 61 and 62, which lie in the same latent frame"),
        ("frames@99", "frames@99 is outside a video of 81 frames"),
        ("frames@-82", "frames@-82 is outside a video of 81 frames"),
        ("clip@0:85", "clip@0:85 is outside a video of 81 frames"),
        ("clip@41:74", "ends before frame 74, within a latent frame: expected 4k\\+1"),
        ("clip@40:80", r"clip@40:80 is 40 frames of 81: this autoencoder takes 4k\+1"),
        ("clip@40:9", "clip@40:9 is -31 frames"),
        ("clip@0:33+frames@30", "same latent frame"),
        ("clip@:-1+frames@-1", "clip@0:-1 is 80 frames"),
        ("every@4", "every@4 leaves nothing to generate of 81 frames"),
        ("any_frames", "is for the training mix"),
    ],
)
def test_conditions_that_do_not_fit(name: str, message: str) -> None:
    with pytest.raises(DoesNotFit, match=message) as raised:
        pieces_of(name, 81, Means(causal=True))
    assert "\n" not in str(raised.value)


def test_conditions_that_fit_no_length_are_refused() -> None:
    with pytest.raises(UserError, match="condition every@4 fits no length of video: every@4 leave"):
        frames_needed("every@4", Means(causal=True))


@pytest.mark.parametrize("causal", [True, False])
def test_any_frames_is_a_random_set_that_leaves_something(causal: bool) -> None:
    """Every latent frame is given at times; each as the last frame behind it, encoded alone."""
    ae, rng, seen = Means(causal), random.Random(1), Counter[int]()
    frames = 41 if causal else 40
    total = Geometry.of(ae).latent_frames(frames)
    may = all_pieces(["any_frames"], frames, ae)
    assert [piece.begin for piece in may] == list(range(total))
    counts = Counter[int]()
    for _ in range(400):
        mask, latents = given("any_frames", frames, ae, rng)
        for place in mask[0, :, 0, 0].nonzero().flatten().tolist():
            last = 4 * place if causal else 4 * place + 3
            assert latents[0, place, 0, 0] == last + 1
            seen[place] += 1
        assert set(pieces_of("any_frames", frames, ae, random.Random(2))) <= set(may)
        counts[int(mask[0, :, 0, 0].sum())] += 1
    assert set(seen) == set(range(total))
    assert set(counts) == set(range(1, total))
    assert not fits("any_frames", 1, ae)


def test_any_frames_stays_clear_of_what_is_given_beside_it() -> None:
    ae, rng = Means(causal=True), random.Random(1)
    for _ in range(50):
        mask, _ = given("any_frames+clip@0:5", 21, ae, rng)
        assert mask[0, :2].all()
        assert 3 <= int(mask[0, :, 0, 0].sum()) <= 5


def test_pieces_are_kept_by_names_that_say_their_frames() -> None:
    """Those at an end are the same in clips of all lengths."""
    ae = Means(causal=True)
    found = {
        name: [piece_name(piece, 41) for piece in pieces_of(name, 41, ae)]
        for name in ("i2v_loop", "v2v_head", "v2v_tail", "i2v_middle", "clip@4:13")
    }
    assert found == {
        "i2v_loop": ["given_head_1", "given_tail_1"],
        "v2v_head": ["given_head_33"],
        "v2v_tail": ["given_tail_33"],
        "i2v_middle": ["given_20_1"],
        "clip@4:13": ["given_4_9"],
    }


def test_pieces_of_another_length_are_refused() -> None:
    ae = Means(causal=True)
    with pytest.raises(ValueError, match="is 33 frames, not 21"):
        given_latents([Piece(0, 33, 0, 9)], [clip(21)], ae, (10, 1, 2), 0)
    with pytest.raises(ValueError, match="shorter"):
        given_latents(pieces_of("i2v_loop", 13, ae), [clip(1)], ae, (4, 1, 2), 0)


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
    assert caption("a cat", 5, 24.0, 4.2) == "a cat 24 FPS, 4 motion score."
    assert caption("a cat", 5, 12.5, None) == "a cat 12 FPS."  # 25 FPS, every other frame
    assert caption("a cat", 5, 23.976, None) == "a cat 23 FPS."
    assert caption("a cat", 5, None, 7.0) == "a cat 7 motion score."
    assert caption("a cat", 5, float("nan"), None) == "a cat"
    assert caption("a cat", 1, 24.0, 4.0) == "a cat"  # an image


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
