"""The autoencoder interface: implemented by block-DCT, HunyuanVideo's VAE, FLUX's and the DC-AE."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Autoencoder(Protocol):
    """Video pixels (B, 3, T, H, W) in [-1, 1] to latents (B, C, t, h, w) of about unit scale."""

    latent_channels: int
    compression: tuple[int, int, int]  # frames, rows and columns per latent position
    causal: bool  # the first frame is a separate latent frame: T = 4k + 1; else T = 4k

    def encode(self, video_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor:
        """Encode videos; a stochastic encoder draws each sample from the video's seed."""
        ...

    def decode(self, latent_BCTHW: Tensor) -> Tensor: ...


def posterior_noise(mean_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor:
    """Normal noise for each video from its seed, drawn on the CPU in fp32 so that it is the same on
    every device."""
    noise = [
        torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))
        for mean, seed in zip(mean_BCTHW, seeds, strict=True)
    ]
    return torch.stack(noise).to(mean_BCTHW)
