"""One training step of a generator, in the order it runs: from a batch of clips to gradients.

    encode -> corrupt -> condition    make_example
    model -> loss                     sample_losses
    backward                          GeneratorStep.forward_backward, which calls both

Shapes: B batch, C latent channels, T H W latent frames, rows, columns; V video tokens, D width.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidgen.data.loader import Batch
from vidgen.diffusion import flow
from vidgen.diffusion.config import FlowConfig
from vidgen.models.geometry import Geometry
from vidgen.models.mmdit import MMDiT, MMDiTConfig, Seams, patchify
from vidgen.models.mmdit.flops import flops
from vidgen.models.text.encoder import TextFeatures
from vidgen.recipe.schema import Recipe
from vidgen.runtime import ops
from vidgen.train.batch_encoder import BatchEncoder, ExampleDraws
from vidgen.train.block_memory import BlockActivations
from vidgen.train.objectives.alignment import Alignment
from vidgen.train.step_result import StepResult

GUIDANCE = 4.0  # what a model that reads a guidance scale is trained with


@dataclass(frozen=True)
class Example:
    """One micro-batch, ready for the model and the loss."""

    noisy_BVD: Tensor
    target_BVD: Tensor
    t_B: Tensor  # in the dtype in which the model reads it
    text: TextFeatures
    cond_BVD: Tensor | None
    guidance_B: Tensor | None
    grid: tuple[int, int, int]  # tokens
    weight_BV: Tensor | None = None  # of each token in its sample's loss; None: all alike


@torch.no_grad()
def make_example(
    batch: Batch,
    encode: BatchEncoder,
    config: MMDiTConfig,
    flow_config: FlowConfig,
    t: float | None = None,
) -> Example:
    """Encode, corrupt, condition. `t` is the timestep of all samples; None draws one for each.

    Every random draw belongs to a sample (seed, epoch, manifest row), so a run does not change with
    the number of ranks or with the step it was resumed at.
    """
    draws = [ExampleDraws(encode.seed, batch.epoch, key, encode.device) for key in batch.keys]
    bucket, patch = batch.bucket, config.patch_size
    geometry = Geometry.of(encode.autoencoder)
    grid = geometry.latent_grid(bucket.frames, bucket.height, bucket.width)

    # Encode: clips and captions, unless the latent cache has them
    if batch.latents is None:
        video_BCTHW = ops.video_to_input(batch.video_BTHWC, 0.5, 0.5, torch.float32)
        clean_BCTHW = encode.video(video_BCTHW, draws, grid)
    else:
        video_BCTHW, clean_BCTHW = None, batch.latents.latent_BCTHW.float()
    features = encode.captions(batch)

    # Corrupt: noise at a timestep shifted by the shape, and the velocity to predict there
    alpha = flow.shift_alpha(flow_config, grid)
    t_B = torch.stack([flow.sample_timestep(alpha, draw.generator) for draw in draws])
    if t is not None:
        t_B = torch.full_like(t_B, t)  # the noise stays the sample's own
    t_B = t_B.to(flow.time_dtype(flow_config))  # noise is mixed in at the rounded time too
    noise_BCTHW = torch.empty_like(clean_BCTHW)
    for noise, draw in zip(noise_BCTHW, draws, strict=True):
        noise.normal_(generator=draw.generator)
    noisy_BCTHW, target_BCTHW = flow.corrupt(flow_config, clean_BCTHW, noise_BCTHW, t_B)

    # Condition: text sometimes dropped, frames sometimes given. A sample's draws come in this order
    text = encode.drop_text(features, draws)
    cond_BVD = weight_BV = guidance_B = None
    if config.guidance_embed:
        guidance_B = torch.full((len(draws),), GUIDANCE, device=t_B.device)
    if config.cond_embed:
        cond_BVD = patchify(encode.conditions(batch, video_BCTHW, draws, grid), patch)
        cond_BVD = cond_BVD.to(encode.dtype)
        weight_BV = encode.loss_weights(cond_BVD)

    return Example(
        noisy_BVD=patchify(noisy_BCTHW, patch).to(encode.dtype),
        target_BVD=patchify(target_BCTHW, patch),
        t_B=t_B,
        text=text,
        cond_BVD=cond_BVD,
        guidance_B=guidance_B,
        grid=(grid[0], grid[1] // patch, grid[2] // patch),
        weight_BV=weight_BV,
    )


def sample_losses(model: MMDiT, example: Example, seams: Seams) -> Tensor:
    """Model and loss: the loss of each sample, fp32 (B,)."""
    predicted_BVD = model(
        example.noisy_BVD,
        grid=example.grid,
        txt=example.text.tokens_BLD,
        vec=example.text.pooled_BD,
        t=example.t_B,
        cond=example.cond_BVD,
        guidance=example.guidance_B,
        seams=seams,
    )
    return flow.loss_per_sample(predicted_BVD, example.target_BVD, example.weight_BV)


@dataclass(frozen=True)
class GeneratorStep:
    """What one batch does to a generator: gradients, and the figures of the step's metrics line."""

    recipe: Recipe
    encode: BatchEncoder
    model: MMDiT
    seams: Seams
    activations: BlockActivations
    alignment: Alignment | None
    autocast: Callable[[], AbstractContextManager[Any]]
    phase: Callable[[str], AbstractContextManager[None]]  # times what runs within it

    def losses(self, batch: Batch, t: float | None = None) -> Tensor:
        """The loss of each sample (B,), at the timestep `t` or at one drawn for each."""
        example = make_example(batch, self.encode, self.recipe.model, self.recipe.flow, t)
        with self.autocast():
            return sample_losses(self.model, example, self.seams)

    def forward_backward(self, batch: Batch) -> StepResult:
        """Adds one micro-batch's share to the gradients."""
        recipe = self.recipe
        with self.phase("encode"):
            example = make_example(batch, self.encode, recipe.model, recipe.flow)
        with self.phase("forward"), self.autocast():
            loss_B = sample_losses(self.model, example, self.seams)
        loss, figures = loss_B.mean(), {}
        if self.alignment is not None:
            with self.phase("alignment"), self.autocast():
                distance = self.alignment.losses(batch.video_BTHWC, example.grid).mean()
            loss = loss + self.alignment.weight * distance
            figures["alignment"] = -distance.detach()
        with self.phase("backward"):
            (loss / recipe.train.accumulate).backward()

        videos, once = len(batch.keys), flops(recipe.model, example.grid, self.encode.text_length)
        recomputed = self.activations.recomputed_share * once.forward
        return StepResult(
            batch,
            bin_B=example.t_B.float(),
            loss_B=loss_B.detach(),
            tokens=videos * math.prod(example.grid),
            model_flops=videos * once.training,
            hardware_flops=videos * round(once.training + recomputed),
            figures=figures,
        )
