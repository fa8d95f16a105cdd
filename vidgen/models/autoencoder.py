"""The interface every video autoencoder has: the block-DCT codec, HunyuanVideo's VAE, DC-AE."""

from collections.abc import Sequence
from typing import Protocol

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


def latent_grid(ae: Autoencoder, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Latent (t, h, w) of a video; raises ValueError naming the nearest sizes it can take."""
    ct, ch, cw = ae.compression
    for name, size, unit in (("height", height, ch), ("width", width, cw)):
        if size <= 0 or size % unit:
            near = max(unit, round(size / unit) * unit)
            raise ValueError(f"{name} {size} is not a multiple of {unit}; the nearest is {near}")
    if frames == 1:
        return 1, height // ch, width // cw
    extra = 1 if ae.causal else 0
    if frames < 1 or (frames - extra) % ct:
        low = max(ct + extra, (frames - extra) // ct * ct + extra)
        form = f"{ct}k+1" if ae.causal else f"a multiple of {ct}"
        raise ValueError(
            f"{frames} frames: this autoencoder takes {form}; the nearest are {low} and {low + ct}"
        )
    return (frames - extra) // ct + extra, height // ch, width // cw
