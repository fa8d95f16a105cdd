"""Clips and captions of a batch to latents and features, by the encoders or from the latent cache.

The ranks of a context group train on the same batch: each encodes a share of its samples and
all-gathers the results.
"""

import hashlib
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vidgen.data.loader import Batch
from vidgen.diffusion.conditions import (
    caption,
    choose_condition,
    condition_channels,
    cut_piece,
    given_latents,
    piece_name,
    pieces_of,
    place_latents,
)
from vidgen.diffusion.config import ConditionConfig
from vidgen.models.text.encoder import TextFeatures
from vidgen.runtime.parallel import ContextGroup, shares
from vidgen.train.encoders import Encoders

Grid = tuple[int, int, int]  # latent frames, rows, columns


class ExampleDraws:
    """The random numbers of one sample in one epoch."""

    def __init__(self, seed: int, epoch: int, key: int, device: torch.device) -> None:
        digest = hashlib.sha256(f"vidgen sample {seed} {epoch} {key}".encode()).digest()
        noise, choices, encoder = (
            int.from_bytes(digest[i : i + 8], "little") >> 1 for i in (0, 8, 16)
        )
        self.generator = torch.Generator(device).manual_seed(noise)
        self.random = random.Random(choices)
        self.encoder_seed = encoder


class BatchEncoder:
    """Encodes each sample by itself, so that a sample is the same in any batch."""

    def __init__(
        self,
        encoders: Encoders,
        conditions: ConditionConfig,
        *,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        group: ContextGroup | None = None,
    ) -> None:
        self.autoencoder, self._text = encoders.autoencoder, encoders.text
        self.text_length = encoders.text.length
        self.seed, self.device, self.dtype = seed, device, dtype
        self._conditions, self._group = conditions, group
        null = self._text.encode([""])
        self._null = TextFeatures(null.tokens_BLD.to(device), null.pooled_BD.to(device))

    def video(self, video_BCTHW: Tensor, draws: Sequence[ExampleDraws], grid: Grid) -> Tensor:
        """Latents (B, C, t, h, w), fp32."""
        seeds = [draw.encoder_seed for draw in draws]
        return self._share(
            len(draws),
            lambda mine: self.autoencoder.encode(video_BCTHW[mine], seeds[mine]).float(),
            (self.autoencoder.latent_channels, *grid),
        )

    def captions(self, batch: Batch) -> TextFeatures:
        """Features of every caption, with frame rate and motion score at its end if so trained."""
        if batch.latents is not None:
            return batch.latents.text
        captions = batch.captions
        if self._conditions.suffix:
            captions = [
                caption(text, batch.bucket.frames, fps, motion)
                for text, fps, motion in zip(captions, batch.fps, batch.motion, strict=True)
            ]
        if self._group is None:
            return self._text.encode(captions)
        tokens_LD, width = self._null.tokens_BLD[0], self._null.pooled_BD.shape[1]

        def encode(mine: slice) -> Tensor:
            found = self._text.encode(captions[mine])
            return torch.cat((found.tokens_BLD.flatten(1), found.pooled_BD), dim=1)

        # Tokens and pooled text side by side: one all-gather
        both = self._share(len(captions), encode, (tokens_LD.numel() + width,), tokens_LD.dtype)
        tokens, pooled = both.split((tokens_LD.numel(), width), dim=1)
        return TextFeatures(tokens.unflatten(1, tokens_LD.shape), pooled)

    def drop_text(self, features: TextFeatures, draws: Sequence[ExampleDraws]) -> TextFeatures:
        """The empty caption's features in place of some samples'; tokens and pooled text apart."""
        drop_tokens = self._draw(draws, self._conditions.drop_tokens)[:, None, None]
        drop_pooled = self._draw(draws, self._conditions.drop_pooled)[:, None]
        null = self._null
        return TextFeatures(
            torch.where(drop_tokens, null.tokens_BLD, features.tokens_BLD).to(self.dtype),
            torch.where(drop_pooled, null.pooled_BD, features.pooled_BD).to(self.dtype),
        )

    def _draw(self, draws: Sequence[ExampleDraws], probability: float) -> Tensor:
        return torch.tensor([d.random.random() < probability for d in draws], device=self.device)

    def conditions(
        self, batch: Batch, video_BCTHW: Tensor | None, draws: Sequence[ExampleDraws], grid: Grid
    ) -> Tensor:
        """Mask and latents of the frames each sample is given, (B, 1 + C, t, h, w).

        `video_BCTHW` is None where the latent cache holds the pieces encoded.
        """
        ae, frames = self.autoencoder, batch.bucket.frames
        chosen = []
        for draw in draws:
            name = choose_condition(self._conditions, frames, ae, draw.random)
            chosen.append(pieces_of(name, frames, ae, draw.random))

        def given(sample: int) -> tuple[Tensor, Tensor]:
            pieces = chosen[sample]
            if video_BCTHW is None:
                assert batch.latents is not None
                cached = batch.latents.given
                parts = [cached[piece_name(piece, frames)][sample] for piece in pieces]
                return place_latents(pieces, parts, ae, grid, self.device)
            pixels = [cut_piece(piece, video_BCTHW[sample]) for piece in pieces]
            return given_latents(pieces, pixels, ae, grid, draws[sample].encoder_seed)

        def channels(mine: slice) -> Tensor:
            found = []
            for sample in range(*mine.indices(len(draws))):
                mask, latents = (part[None].to(self.device) for part in given(sample))
                found.append(condition_channels(mask, latents))
            return torch.cat(found)

        if video_BCTHW is None:
            return channels(slice(None))
        # Shares in reverse: with fewer samples than ranks, those without a clip take conditions
        shape = (1 + ae.latent_channels, *grid)
        return self._share(len(draws), channels, shape, reverse=True)

    def loss_weights(self, cond_BVD: Tensor) -> Tensor | None:
        """Of each token, from the mask in the first channel: whole frames, so whole tokens."""
        less = 1 - self._conditions.given_weight
        return 1 - less * cond_BVD[..., 0].float() if less else None

    def _share(
        self,
        samples: int,
        encode: Callable[[slice], Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        reverse: bool = False,
    ) -> Tensor:
        """`encode` of all samples, each by one rank of the context group; `shape` is of one."""
        if self._group is None:
            return encode(slice(0, samples))
        counts = shares(samples, self._group.size)
        if reverse:
            counts.reverse()
        begin = sum(counts[: self._group.rank])
        mine = slice(begin, begin + counts[self._group.rank])
        if mine.start == mine.stop:
            part = torch.empty(0, *shape, dtype=dtype, device=self.device)
        else:
            part = encode(mine)
        return self._group.all_gather(part, counts)
