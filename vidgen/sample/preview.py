"""A cheap look at latents while they form: one linear map from latent channels to colours."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidgen.data.read.video import write_image
from vidgen.models.autoencoder import Autoencoder

_PICTURES = 16  # of random smooth colours, that the map is fitted to
_SIDE = 8  # latents along a side of each
_FRAMES = 4  # shown of a video
_EVERY_S = 2.0


class Projection:
    """Least squares from latents to the mean colour of the pixels behind them."""

    def __init__(self, weights_CR: Tensor) -> None:
        self._weights = weights_CR  # latent channels and a constant; red, green, blue

    @staticmethod
    @torch.no_grad()
    def fit(ae: Autoencoder, device: torch.device) -> "Projection":
        """From pictures the autoencoder encodes itself: nothing need be known of it."""
        rows, columns = _SIDE * ae.compression[1], _SIDE * ae.compression[2]
        generator = torch.Generator().manual_seed(0)
        colours = torch.rand(_PICTURES, 3, 4, 4, generator=generator) * 2 - 1
        pictures = F.interpolate(colours, (rows, columns), mode="bilinear").to(device)
        latents = torch.cat([ae.encode(p[None, :, None], [0]) for p in pictures])[:, :, 0]
        wanted = F.interpolate(pictures, latents.shape[2:], mode="area")
        given_NC = _with_constant(latents.float().movedim(1, -1).flatten(0, 2))
        wanted_NR = wanted.movedim(1, -1).flatten(0, 2)
        # A little ridge: on a large latent some channels hardly move in smooth pictures.
        square = given_NC.T @ given_NC
        ridge = 1e-3 * square.diagonal().mean() * torch.eye(len(square), device=device)
        return Projection(torch.linalg.solve(square + ridge, given_NC.T @ wanted_NR))

    def picture(self, latents_CTHW: Tensor) -> np.ndarray:
        """Up to four frames side by side, uint8 (H, W, 3)."""
        frames = latents_CTHW.shape[1]
        shown = torch.linspace(0, frames - 1, min(_FRAMES, frames)).round().long()
        picked = latents_CTHW[:, shown.to(latents_CTHW.device)].float().movedim(0, -1)  # T H W C
        colours = _with_constant(picked) @ self._weights.to(picked)
        strip = torch.cat(list(colours), dim=1)
        large = strip.repeat_interleave(8, 0).repeat_interleave(8, 1)
        pixels: np.ndarray = ((large + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
        return pixels


class PreviewFile:
    """A picture beside the video that is being made, renewed every few seconds."""

    def __init__(self, projection: Projection, path: Path) -> None:
        self._projection, self._path = projection, path
        self._next = 0.0

    def __call__(self, done: int, latents_CTHW: Tensor) -> None:
        if time.monotonic() >= self._next:
            write_image(self._path, self._projection.picture(latents_CTHW))
            self._next = time.monotonic() + _EVERY_S

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def _with_constant(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)
