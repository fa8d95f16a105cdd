"""What a batch becomes: noise, targets, dropped text, conditions; draws belong to samples."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vidgen.data.index.buckets import Bucket
from vidgen.data.loader import Batch
from vidgen.diffusion import flow
from vidgen.diffusion.config import ConditionConfig, FlowConfig
from vidgen.errors import UserError
from vidgen.models.block_dct.config import BlockDCTConfig
from vidgen.models.block_dct.model import BlockDCT
from vidgen.models.mmdit import MMDiTConfig, patchify
from vidgen.models.text.builtin import BuiltinText
from vidgen.models.text.config import TextConfig
from vidgen.models.text.encoder import TextFeatures
from vidgen.recipe.schema import Recipe
from vidgen.runtime import ops
from vidgen.train.batch_encoder import BatchEncoder
from vidgen.train.encoders import Encoders
from vidgen.train.step import Example, make_example

MODEL = MMDiTConfig(
    in_channels=96,
    hidden_size=32,
    num_heads=2,
    depth=1,
    depth_single_blocks=1,
    axes_dim=(4, 6, 6),
    vec_in_dim=16,
    context_in_dim=16,
    cond_embed=False,
)
AE = BlockDCT(BlockDCTConfig())
TEXT = BuiltinText(TextConfig(length=8, token_width=16, pooled_width=16))
PLAIN = ConditionConfig(suffix=False, drop_tokens=0, drop_pooled=0)


def batch(keys: list[int], frames: int = 9, epoch: int = 0, **changes: Any) -> Batch:
    """Clips whose pixels depend on their key alone."""
    videos = [
        torch.randint(
            256,
            (frames, 32, 32, 3),
            dtype=torch.uint8,
            generator=torch.Generator().manual_seed(key),
        )
        for key in keys
    ]
    made = Batch(
        pixels_BTHWC=torch.stack(videos),
        captions=[f"clip {key}" for key in keys],
        fps=[24.0] * len(keys),
        motion=[None] * len(keys),
        keys=keys,
        bucket=Bucket("32px", frames, 32, 32),
        epoch=epoch,
        step_in_epoch=0,
    )
    return replace(made, **changes)


Make = Callable[[Batch], Example]
FLOW = FlowConfig()


def maker(
    conditions: ConditionConfig = PLAIN,
    model: MMDiTConfig = MODEL,
    seed: int = 0,
    text: Any = TEXT,
    flow_config: FlowConfig = FLOW,
) -> Make:
    encode = BatchEncoder(
        Encoders(AE, text),
        conditions,
        seed=seed,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    return lambda batch: make_example(batch, encode, model, flow_config)


def tensors(example: Example) -> list[Tensor]:
    found = [example.noisy_BVD, example.target_BVD, example.t_B, *vars(example.text).values()]
    return [*found, *(t for t in (example.cond_BVD, example.guidance_B) if t is not None)]


def test_noise_and_target_lie_on_the_flow() -> None:
    given = batch([3, 4])
    example = maker()(given)
    assert example.grid == (3, 2, 2)
    clean = patchify(AE.encode(ops.video_to_input(given.video_BTHWC, 0.5, 0.5, torch.float32)), 2)
    t, sigma = example.t_B[:, None, None], FlowConfig().sigma_min
    assert ((t > 0) & (t < 1)).all()
    noise = (example.target_BVD + clean) / (1 - sigma)
    torch.testing.assert_close(
        example.noisy_BVD,
        (1 - t) * clean + (1 - (1 - sigma) * (1 - t)) * noise,
        atol=1e-4,
        rtol=1e-4,
    )
    assert abs(noise.std().item() - 1) < 0.1
    assert abs(noise.mean().item()) < 0.1


CONDITIONED = (
    ConditionConfig(weights={"t2v": 1, "i2v_head": 1, "i2v_loop": 1}, drop_tokens=0.5),
    replace(MODEL, cond_embed=True, guidance_embed=True),
)


def test_a_sample_is_the_same_in_any_batch() -> None:
    """So neither the number of ranks nor the place of a resume changes a run."""
    make = maker(*CONDITIONED, text=BuiltinText(TextConfig(token_width=16, pooled_width=16)))
    whole = make(batch([5, 2, 9, 7]))
    halves = [make(batch([5, 2])), make(batch([9, 7]))]
    turned = make(batch([7, 9, 2, 5]))
    for a, b, c, d in zip(*map(tensors, (whole, *halves, turned)), strict=True):
        torch.testing.assert_close(torch.cat([b, c]), a, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(d.flip(0), a, rtol=1e-6, atol=1e-6)
    assert torch.equal(whole.t_B, torch.cat([half.t_B for half in halves]))


def test_draws_differ_by_row_epoch_and_seed() -> None:
    times = [
        maker()(batch([1, 2])).t_B[0],
        maker()(batch([1, 2])).t_B[1],
        maker()(batch([1], epoch=1)).t_B[0],
        maker(seed=1)(batch([1])).t_B[0],
    ]
    assert len({float(t) for t in times}) == 4
    assert maker()(batch([1])).t_B[0] == times[0]


def test_rounded_times_are_those_noise_is_mixed_in_at() -> None:
    """The draws stay the same; both x_t and what the model reads are of t in bf16."""
    exact = maker()(batch([1, 2, 3, 4]))
    rounded = maker(flow_config=FlowConfig(round_t="bf16"))(batch([1, 2, 3, 4]))
    assert (exact.t_B.dtype, rounded.t_B.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(rounded.t_B, exact.t_B.bfloat16())
    assert torch.equal(rounded.target_BVD, exact.target_BVD)
    clean_less_noise = -(exact.target_BVD)  # to sigma_min
    moved = (exact.t_B - rounded.t_B.float())[:, None, None] * clean_less_noise
    torch.testing.assert_close(rounded.noisy_BVD - exact.noisy_BVD, moved, atol=1e-4, rtol=0)
    assert moved.abs().max() > 1e-3


def test_times_follow_the_shift_of_the_shape() -> None:
    keys = list(range(300))
    given = batch(keys, frames=1)
    found = maker()(given).t_B
    alpha = flow.shift_alpha(FlowConfig(), (1, 4, 4))
    back = found / (alpha - (alpha - 1) * found)  # the shift undone: logit-normal
    logits = torch.log(back / (1 - back))
    assert abs(logits.mean()) < 0.2
    assert abs(logits.std() - 1) < 0.15


def test_text_is_dropped_by_token_and_pooled_chance_independently() -> None:
    keys = list(range(600))
    example = maker(ConditionConfig(suffix=False, drop_tokens=0.4, drop_pooled=0.2))(
        batch(keys, frames=1)
    )
    null = TEXT.encode([""])
    no_tokens = (example.text.tokens_BLD == null.tokens_BLD).flatten(1).all(1)
    no_pooled = (example.text.pooled_BD == null.pooled_BD).all(1)
    spread = 4 / math.sqrt(600)  # eight standard deviations at most
    assert abs(no_tokens.float().mean() - 0.4) < spread / 2
    assert abs(no_pooled.float().mean() - 0.2) < spread / 2
    assert abs((no_tokens & no_pooled).float().mean() - 0.08) < spread / 2
    full = TEXT.encode([f"clip {key}" for key in keys])
    assert torch.equal(example.text.tokens_BLD[~no_tokens], full.tokens_BLD[~no_tokens])
    assert torch.equal(example.text.pooled_BD[~no_pooled], full.pooled_BD[~no_pooled])


class Listener:
    """A text encoder that remembers what it was given."""

    length, token_width, pooled_width = 1, 16, 16

    def __init__(self) -> None:
        self.heard: list[str] = []

    def encode(self, captions: list[str]) -> TextFeatures:
        self.heard += captions
        return TextFeatures(torch.zeros(len(captions), 1, 16), torch.zeros(len(captions), 16))


def test_captions_end_with_frame_rate_and_motion() -> None:
    text = Listener()
    fps, motion = [24.0, float("nan"), 12.5], [None, None, 3.6]
    maker(ConditionConfig(), text=text)(batch([1, 2, 3], fps=fps, motion=motion))
    assert text.heard == ["", "clip 1 24 FPS.", "clip 2", "clip 3 12 FPS, 4 motion score."]
    text.heard.clear()
    maker(ConditionConfig(), text=text)(batch([1], frames=1, fps=[24.0], motion=[3.0]))
    assert text.heard == ["", "clip 1"]  # an image
    text.heard.clear()
    maker(PLAIN, text=text)(batch([1], motion=[2.0]))
    assert text.heard == ["", "clip 1"]


def conditions_of(example: Example, grid: tuple[int, int, int]) -> list[str]:
    """Which latent frames each sample is given, from the mask channel: "x.." is the first of 3."""
    assert example.cond_BVD is not None
    mask = example.cond_BVD.unflatten(1, grid)[..., :4].amax((2, 3, 4))
    assert ((mask == 0) | (mask == 1)).all()
    return ["".join(".x"[int(m)] for m in sample) for sample in mask]


def test_conditions_are_chosen_by_weight_among_those_that_fit() -> None:
    weights = {"t2v": 1, "i2v_head": 2, "i2v_tail": 1, "v2v_head": 5}
    make = maker(
        ConditionConfig(weights=weights, suffix=False),
        replace(MODEL, cond_embed=True),
    )
    seen = conditions_of(make(batch(list(range(400)))), (3, 2, 2))
    assert abs(seen.count("x..") / 400 - 0.5) < 0.1
    assert abs(seen.count("..x") / 400 - 0.25) < 0.1
    assert abs(seen.count("...") / 400 - 0.25) < 0.1  # 9 frames are too few for a clip of 33
    images = make(batch(list(range(8)), frames=1))
    assert conditions_of(images, (1, 2, 2)) == ["."] * 8
    assert not images.cond_BVD.any()  # type: ignore[union-attr]
    long = conditions_of(make(batch([1, 2, 3, 4, 5, 6], frames=37)), (10, 2, 2))
    assert "xxxxxxxxx." in long


def test_a_given_frame_is_encoded_without_the_rest() -> None:
    only_head = ConditionConfig(weights={"i2v_head": 1}, suffix=False)
    given = batch([8])
    example = maker(only_head, replace(MODEL, cond_embed=True))(given)
    assert example.cond_BVD is not None
    cond = example.cond_BVD.unflatten(1, (3, 2, 2))
    first = ops.video_to_input(given.video_BTHWC[:, :1].contiguous(), 0.5, 0.5, torch.float32)
    torch.testing.assert_close(cond[:, :1].flatten(1, 3)[..., 4:], patchify(AE.encode(first), 2))
    assert not cond[:, 1:].any()


def test_given_frames_weigh_as_the_recipe_says_in_the_loss() -> None:
    model = replace(MODEL, cond_embed=True)
    conditions = ConditionConfig(weights={"i2v_head": 1}, given_weight=0.25)
    weight_BV = maker(conditions, model)(batch([0, 1])).weight_BV
    assert weight_BV is not None
    frames, spatial = 3, 4
    assert weight_BV.view(2, frames, spatial)[:, 0].unique().tolist() == [0.25]
    assert weight_BV.view(2, frames, spatial)[:, 1:].unique().tolist() == [1]
    assert maker(replace(conditions, given_weight=1.0), model)(batch([0])).weight_BV is None


def test_a_model_without_conditions_cannot_weigh_given_frames(tiny: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match=r"model\.cond_embed=true"):
        tiny("model.cond_embed=false", "conditions.given_weight=0.25")


def test_guidance_is_given_to_a_model_that_reads_it() -> None:
    assert maker()(batch([1])).guidance_B is None
    example = maker(model=replace(MODEL, guidance_embed=True))(batch([1, 2]))
    assert example.guidance_B is not None
    assert example.guidance_B.tolist() == [4.0, 4.0]


def test_a_caption_that_is_too_long_is_refused() -> None:
    from vidgen.errors import UserError

    with pytest.raises(UserError, match=r"caption of 9 words.*takes at most 8"):
        maker()(batch([1], captions=["a b c d e f g h i"]))
