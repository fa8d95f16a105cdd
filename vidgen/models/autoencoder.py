"""The interface every autoencoder has: block-DCT codec, HunyuanVideo's VAE, FLUX's, DC-AE."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Autoencoder(Protocol):
    """Video pixels (B, 3, T, H, W) in [-1, 1] to latents (B, C, t, h, w) of about unit scale."""

    latent_channels: int
    compression: tuple[int, int, int]  # frames, rows and columns behind one latent position
    causal: bool  # the first frame is a latent frame of its own: T = 4k + 1; else T = 4k

    def encode(self, video_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor:
        """A seed for each video draws a stochastic encoder's sample; others have no use for it."""
        ...

    def decode(self, latent_BCTHW: Tensor) -> Tensor: ...


def posterior_noise(mean_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor:
    """Normal noise for each video from its own seed: on the CPU in fp32, so that a seed means the
    same sample on every device."""
    noise = [
        torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))
        for mean, seed in zip(mean_BCTHW, seeds, strict=True)
    ]
    return torch.stack(noise).to(mean_BCTHW)
