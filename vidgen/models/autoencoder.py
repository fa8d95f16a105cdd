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


def latent_grid(
    ae: Autoencoder, frames: int, height: int, width: int, patch: int = 1
) -> tuple[int, int, int]:
    """Latent (t, h, w) of a video; raises ValueError naming the nearest sizes it can take.

    `patch` is the side, in latents, of the model's tokens: sides must divide into them.
    """
    ct, ch, cw = ae.compression
    for name, size, unit in (("height", height, ch * patch), ("width", width, cw * patch)):
        if size <= 0 or size % unit:
            low = size // unit * unit
            near = f"nearest are {low} and {low + unit}" if low > 0 else f"nearest is {unit}"
            raise ValueError(f"{name} {size} is not a multiple of {unit}; the {near}")
    extra = 1 if ae.causal else 0
    # Without causality a single latent frame is an image's: `ct` frames would come back as one.
    least = ct + 1 if ae.causal else 2 * ct if ct > 1 else 1
    if frames != 1 and (frames < least or (frames - extra) % ct):
        form = f"{ct}k+1" if ae.causal else f"1 or a multiple of {ct} from {least} on"
        low = (frames - extra) // ct * ct + extra
        if frames < 1:
            near = "nearest is 1"
        else:
            near = f"nearest are {low if low >= least else 1} and {max(low + ct, least)}"
        raise ValueError(f"{frames} frames: this autoencoder takes {form}; the {near}")
    return (frames - extra) // ct + extra if frames > 1 else 1, height // ch, width // cw


def posterior_noise(mean_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor:
    """Normal noise for each video from its own seed: on the CPU in fp32, so that a seed means the
    same sample on every device."""
    noise = [
        torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))
        for mean, seed in zip(mean_BCTHW, seeds, strict=True)
    ]
    return torch.stack(noise).to(mean_BCTHW)
