"""What the model reads: captions as in training, and references that share no noise."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vidgen.models.block_dct.config import BlockDCTConfig
from vidgen.models.block_dct.model import BlockDCT
from vidgen.sample import Pipeline, make_requests
from vidgen.sample.denoise import normal_noise
from vidgen.sample.inputs import captions, encode_references, reference_seed
from vidgen.sample.job import check


class Sampled(BlockDCT):
    """As an encoder that samples its posterior: latents are the noise of their seed."""

    def encode(self, video_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor:
        shape = tuple(super().encode(video_BCTHW, seeds).shape[1:])
        return torch.stack([normal_noise(seed, shape) for seed in seeds])


def test_references_share_no_noise_with_the_video(
    pipeline: Pipeline, files: dict[str, str]
) -> None:
    ae, recipe = Sampled(BlockDCTConfig()), pipeline.recipe
    found = []
    for seed in (0, 3):
        (one,) = make_requests(pipeline, ["a"], seed=seed, ref=[f"{files['left']}@0"])
        job = check(recipe, ae, one)
        given = encode_references(recipe, ae, [job], torch.device("cpu")).latents[0, :, 0]
        noise = normal_noise(seed, (ae.latent_channels, *job.latent))
        assert not torch.isin(given.flatten(), noise.flatten()).any()
        found.append(given)
        again = encode_references(recipe, ae, [job], torch.device("cpu")).latents[0, :, 0]
        assert torch.equal(again, given)
    assert not torch.equal(*found)
    assert len({reference_seed(n) for n in range(99)} - set(range(99))) == 99


def test_captions_are_those_of_training(make_pipeline: Callable[..., Pipeline]) -> None:
    pipeline = make_pipeline()
    (one,) = make_requests(pipeline, ["a cat"], fps=12.5, motion_score=4.0, negative="grey")
    said = ("a cat 12 FPS, 4 motion score.", "grey 12 FPS, 4 motion score.")
    assert captions(pipeline.recipe, one) == said
    assert captions(pipeline.recipe, replace(one, frames=1)) == ("a cat", "grey")
    assert captions(pipeline.recipe, replace(one, negative="")) == (said[0], "")
    plain = make_pipeline(conditions={"suffix": False})
    assert captions(plain.recipe, one) == ("a cat", "grey")
