"""From a batch of clips to what the model and the loss take.

Every random draw belongs to a sample (seed, epoch, manifest row), so a run does not change with
the number of ranks or with where it was resumed. The ranks of a context group make the same
example: each encodes a share of the samples and gives it to the others.
"""

import hashlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidgen.data.loader import Batch
from vidgen.diffusion import flow
from vidgen.diffusion.conditions import (
    caption,
    condition_channels,
    cut_pieces,
    frames_needed,
    given_latents,
    given_parts,
    piece_name,
    place_latents,
)
from vidgen.diffusion.config import ConditionConfig, ConditionName, FlowConfig
from vidgen.errors import UserError
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.geometry import Geometry
from vidgen.models.mmdit import MMDiTConfig, patchify
from vidgen.models.text.encoder import TextEncoder, TextFeatures
from vidgen.runtime import ops
from vidgen.runtime.parallel import ContextGroup, shares


@dataclass(frozen=True)
class Example:
    """One micro-batch, ready for the model."""

    noisy_BVD: Tensor
    target_BVD: Tensor
    t_B: Tensor
    text: TextFeatures
    cond_BVD: Tensor | None
    guidance_B: Tensor | None
    grid: tuple[int, int, int]  # tokens
    weight_BV: Tensor | None = None  # of each token in its sample's loss; None: all alike


class ExampleMaker:
    """Encodes clips and captions, draws timesteps, noise, conditions and dropped text."""

    def __init__(
        self,
        model: MMDiTConfig,
        autoencoder: Autoencoder,
        text: TextEncoder,
        flow_config: FlowConfig,
        conditions: ConditionConfig,
        *,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        group: ContextGroup | None = None,
    ) -> None:
        if conditions.given_weight != 1 and not model.cond_embed:
            raise UserError(
                f"conditions.given_weight is {conditions.given_weight:g}, but a model with "
                "cond_embed false is given no frames: set model.cond_embed=true or "
                "conditions.given_weight=1"
            )
        self._model, self._ae, self._text = model, autoencoder, text
        self._group = group
        self._flow, self._conditions = flow_config, conditions
        self._seed, self._device, self._dtype = seed, device, dtype
        null = text.encode([""])
        self._null = TextFeatures(null.tokens_BLD.to(device), null.pooled_BD.to(device))

    @torch.no_grad()
    def __call__(self, batch: Batch, t: float | None = None) -> Example:
        """`t` is the timestep of all samples; None draws each its own."""
        draws = [_Draws(self._seed, batch.epoch, key, self._device) for key in batch.keys]
        bucket = batch.bucket
        grid = Geometry.of(self._ae).latent_grid(bucket.frames, bucket.height, bucket.width)
        if batch.latents is None:
            video = ops.video_to_input(batch.video_BTHWC, 0.5, 0.5, torch.float32)
            seeds = [d.encoder_seed for d in draws]
            clean = self._divided(
                len(draws),
                lambda mine: self._ae.encode(video[mine], seeds[mine]).float(),
                (self._ae.latent_channels, *grid),
            )
        else:
            video, clean = None, batch.latents.latent_BCTHW.float()

        alpha = flow.shift_alpha(self._flow, grid)
        t_B = torch.stack([flow.sample_timestep(alpha, d.generator) for d in draws])
        if t is not None:
            t_B = torch.full_like(t_B, t)  # the noise stays the sample's own
        noise = torch.empty_like(clean)
        for sample, d in zip(noise, draws, strict=True):
            sample.normal_(generator=d.generator)
        noisy, target = flow.corrupt(self._flow, clean, noise, t_B)
        patch = self._model.patch_size
        guidance = torch.full_like(t_B, 4.0) if self._model.guidance_embed else None
        # A sample's draws come in this order.
        text = self._encode_text(batch, draws)
        cond = self._condition(batch, video, grid, draws) if self._model.cond_embed else None
        return Example(
            noisy_BVD=patchify(noisy, patch).to(self._dtype),
            target_BVD=patchify(target, patch),
            t_B=t_B,
            text=text,
            cond_BVD=cond,
            guidance_B=guidance,
            grid=(grid[0], grid[1] // patch, grid[2] // patch),
            weight_BV=None if cond is None else self._weights(cond),
        )

    def _weights(self, cond_BVD: Tensor) -> Tensor | None:
        """From the mask, the first channel of what is given: whole frames, so whole tokens."""
        less = 1 - self._conditions.given_weight
        return 1 - less * cond_BVD[..., 0].float() if less else None

    def _encode_text(self, batch: Batch, draws: list["_Draws"]) -> TextFeatures:
        if batch.latents is not None:
            return self._dropped(batch.latents.text, draws)
        captions = batch.captions
        if self._conditions.suffix:
            captions = [
                caption(text, None if math.isnan(fps) else fps, motion)
                for text, fps, motion in zip(captions, batch.fps, batch.motion, strict=True)
            ]
        return self._dropped(self._features(captions), draws)

    def _dropped(self, features: TextFeatures, draws: list["_Draws"]) -> TextFeatures:
        drop_tokens = self._which(draws, self._conditions.drop_tokens)
        drop_pooled = self._which(draws, self._conditions.drop_pooled)
        null = self._null
        return TextFeatures(
            torch.where(drop_tokens[:, None, None], null.tokens_BLD, features.tokens_BLD).to(
                self._dtype
            ),
            torch.where(drop_pooled[:, None], null.pooled_BD, features.pooled_BD).to(self._dtype),
        )

    def _which(self, draws: list["_Draws"], probability: float) -> Tensor:
        return torch.tensor([d.random.random() < probability for d in draws], device=self._device)

    def _condition(
        self, batch: Batch, video: Tensor | None, grid: tuple[int, int, int], draws: list["_Draws"]
    ) -> Tensor:
        names = [self._choose(batch.bucket.frames, draw.random) for draw in draws]

        def given(sample: int) -> tuple[Tensor, Tensor]:
            name = names[sample]
            if video is None:
                assert batch.latents is not None
                kept = batch.latents.given
                parts = [kept[piece_name(p)][sample] for p in given_parts(name, self._ae)]
                return place_latents(name, parts, self._ae, grid, self._device)
            pieces = cut_pieces(name, video[sample], self._ae)
            return given_latents(name, pieces, self._ae, grid, draws[sample].encoder_seed)

        def channels_of(mine: slice) -> Tensor:
            found = []
            for sample in range(*mine.indices(len(draws))):
                mask, latents = given(sample)
                pair = (part[None].to(self._device) for part in (mask, latents))
                found.append(condition_channels(*pair))
            return torch.cat(found)

        if video is None:
            channels = channels_of(slice(None))
        else:
            # From the other end: with fewer samples than ranks, those without a clip take
            # conditions.
            shape = (1 + self._ae.latent_channels, *grid)
            channels = self._divided(len(draws), channels_of, shape, last_first=True)
        return patchify(channels, self._model.patch_size).to(self._dtype)

    def _features(self, captions: list[str]) -> TextFeatures:
        null = self._null

        def encode(mine: slice) -> Tensor:
            found = self._text.encode(captions[mine])
            return torch.cat((found.tokens_BLD.flatten(1), found.pooled_BD), dim=1)

        if self._group is None:
            return self._text.encode(captions)
        tokens = null.tokens_BLD[0]
        flat = self._divided(
            len(captions), encode, (tokens.numel() + null.pooled_BD.shape[1],), tokens.dtype
        )
        return TextFeatures(
            flat[:, : tokens.numel()].unflatten(1, tokens.shape), flat[:, tokens.numel() :]
        )

    def _divided(
        self,
        count: int,
        encode: Callable[[slice], Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        last_first: bool = False,
    ) -> Tensor:
        """`encode` of all samples, each done by one rank of the group; `shape` is one result's."""
        if self._group is None:
            return encode(slice(0, count))
        counts = shares(count, self._group.size)
        if last_first:
            counts.reverse()
        begin = sum(counts[: self._group.rank])
        mine = slice(begin, begin + counts[self._group.rank])
        if mine.start == mine.stop:
            part = torch.empty(0, *shape, dtype=dtype, device=self._device)
        else:
            part = encode(mine)
        return self._group.all_gather(part, counts)

    def _choose(self, frames: int, rng: random.Random) -> ConditionName:
        """By weight, among the conditions this clip is long enough for."""
        fitting = {
            name: weight
            for name, weight in self._conditions.weights.items()
            if weight and frames >= frames_needed(name, self._ae)
        }
        if not fitting:
            return "t2v"
        return rng.choices(list(fitting), list(fitting.values()))[0]


class _Draws:
    """The random numbers of one sample in one epoch."""

    def __init__(self, seed: int, epoch: int, key: int, device: torch.device) -> None:
        digest = hashlib.sha256(f"vidgen sample {seed} {epoch} {key}".encode()).digest()
        noise, choices, encoder = (
            int.from_bytes(digest[i : i + 8], "little") >> 1 for i in (0, 8, 16)
        )
        self.generator = torch.Generator(device).manual_seed(noise)
        self.random = random.Random(choices)
        self.encoder_seed = encoder
