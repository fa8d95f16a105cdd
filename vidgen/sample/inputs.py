"""What the model reads besides the noise: text features, given frames, times, guidance."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidgen.diffusion import flow
from vidgen.diffusion.condition_names import gives_images
from vidgen.diffusion.conditions import caption, condition_channels, given_latents
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.mmdit import patchify
from vidgen.models.text.encoder import TextEncoder, TextFeatures
from vidgen.recipe import Recipe
from vidgen.sample.denoise import Inputs
from vidgen.sample.job import Job
from vidgen.sample.references import read_references
from vidgen.sample.request import Request

Features = Mapping[str, TextFeatures]  # by caption, in host memory, a batch of one each


@dataclass(frozen=True)
class Given:
    """The latent frames that requests are given, (B, C, t, h, w), and a mask of them."""

    mask: Tensor
    latents: Tensor
    keep: bool = True  # whether they are put back

    def over(self, latents: Tensor) -> Tensor:
        """`latents` with the given frames as they are given, where they are kept."""
        if not self.keep:
            return latents
        return torch.where(self.mask.bool(), self.latents, latents)


def captions(recipe: Recipe, request: Request) -> tuple[str, str]:
    """The prompt and the negative prompt as the model is trained to read them."""

    def full(text: str) -> str:
        if not text or not recipe.conditions.suffix:
            return text
        return caption(text, request.frames, request.fps, request.motion_score)

    return full(request.prompt), full(request.negative)


def encode_captions(recipe: Recipe, encoder: TextEncoder, jobs: Sequence[Job]) -> Features:
    """Each caption by itself, so that a video does not depend on those made beside it."""
    found = {}
    for text in dict.fromkeys(c for job in jobs for c in captions(recipe, job.request)):
        one = encoder.encode([text])
        found[text] = TextFeatures(one.tokens_BLD.cpu(), one.pooled_BD.cpu())
    return found


def encode_references(
    recipe: Recipe, ae: Autoencoder, jobs: Sequence[Job], device: torch.device
) -> Given:
    """Of jobs with the same condition."""
    masks, latents = [], []
    for job in jobs:
        one = job.request
        size = (one.height, one.width)
        pixels = read_references(job.references, size, device)
        pieces = [reference.piece for reference in job.references]
        mask, given = given_latents(pieces, pixels, ae, job.latent, reference_seed(one.seed))
        masks.append(mask[None].to(device))
        latents.append(given[None].float().to(device))
    keep = recipe.sample.keep_given == "all" or gives_images(jobs[0].request.condition)
    return Given(torch.cat(masks), torch.cat(latents), keep)


def reference_seed(seed: int) -> int:
    """Of the posterior sample of references: not the numbers that the video's noise begins with."""
    digest = hashlib.sha256(f"vidgen references {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def make_inputs(
    recipe: Recipe,
    jobs: Sequence[Job],
    features: Features,
    given: Given,
    dtype: torch.dtype,
    *,
    full_guidance: bool = False,
) -> Inputs:
    """For jobs that differ only in text, seed and references."""
    config, device, job = recipe.model, given.mask.device, jobs[0]
    texts = [captions(recipe, each.request) for each in jobs]
    prompts, negatives = ([features[c] for c in column] for column in zip(*texts, strict=True))
    by_branch = {"text": prompts, "image": negatives, "none": negatives}

    def batch(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors).to(device, dtype)

    cond: dict[str, Tensor | None] = dict.fromkeys(by_branch)
    if config.cond_embed:
        channels = condition_channels(given.mask, given.latents)
        shown = patchify(channels, config.patch_size).to(dtype)
        cond = {"text": shown, "image": shown, "none": torch.zeros_like(shown)}
    guidance = None
    if config.guidance_embed:
        guidance = torch.full((len(jobs),), job.request.guidance, device=device)
    return Inputs(
        grid=job.tokens,
        times=flow.timesteps(job.request.steps, flow.shift_alpha(recipe.flow, job.latent)),
        branches=job.full_branches if full_guidance else job.branches,
        solver=job.request.solver,
        time_dtype=flow.time_dtype(recipe.flow),
        text={name: batch([f.tokens_BLD for f in fs]) for name, fs in by_branch.items()},
        pooled={name: batch([f.pooled_BD for f in fs]) for name, fs in by_branch.items()},
        cond=cond,
        guidance=guidance,
    )
