"""An autoencoder of the diffusers package behind the autoencoder interface."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vidgen.models.autoencoder import posterior_noise
from vidgen.models.geometry import Geometry
from vidgen.models.tensor_files import PathOrTensors, Shapes, check_tensors, open_source


class DiffusersAE(nn.Module):
    """Encoding samples the posterior; latents are (z - shift) * scale, of about unit variance."""

    compression: tuple[int, int, int]
    causal: bool

    def __init__(self, module: Any, latent_channels: int, scale: float, shift: float = 0.0) -> None:
        """Of a module with its weights."""
        super().__init__()
        self.module = module.eval().requires_grad_(False)
        self.latent_channels, self.scale, self.shift = latent_channels, scale, shift

    @torch.no_grad()
    def encode(self, video_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor:
        """A sample of the posterior, drawn for each video from its own seed."""
        Geometry.of(self).latent_grid(*video_BCTHW.shape[2:])
        mean, std = self.posterior(video_BCTHW.to(self.module.dtype))
        sample = mean + std * posterior_noise(mean, seeds)
        return ((sample - self.shift) * self.scale).to(video_BCTHW.dtype)

    @torch.no_grad()
    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        latent = latent_BCTHW.to(self.module.dtype) / self.scale + self.shift
        return self.pixels(latent).to(latent_BCTHW.dtype)

    def posterior(self, video_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents z."""
        found = self.module.encode(video_BCTHW).latent_dist
        return found.mean, found.std

    def pixels(self, latent_BCTHW: Tensor) -> Tensor:
        video: Tensor = self.module.decode(latent_BCTHW).sample
        return video


@torch.no_grad()
def filled(
    module: nn.Module,
    source: PathOrTensors,
    dtype: torch.dtype,
    device: torch.device | str,
    shapes: Shapes,
    published_name: Callable[[str], str] = str,
) -> nn.Module:
    """A module from the meta device with the weights of a published file, which holds tensors of
    these shapes; a wrong, missing or extra one is an error."""
    nn.Module.to(module, dtype)  # diffusers' own `to` warns of a case that is not here
    with open_source(source) as tensors:
        check_tensors(tensors, shapes)
        module.to_empty(device=device)
        for name, target in module.state_dict().items():
            info = tensors.infos[published_name(name)]
            whole = torch.empty(info.shape, dtype=info.dtype)
            tensors.read(published_name(name), whole)
            target.copy_(whole.view(target.shape))
    return module
