"""FLUX.1's image autoencoder: the diffusers implementation behind the autoencoder interface."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vidgen.errors import UserError
from vidgen.models.autoencoder import latent_grid, posterior_noise
from vidgen.models.flux_ae.config import FluxAEConfig
from vidgen.models.flux_ae.weights import load_weights
from vidgen.models.tensor_files import PathOrTensors

OVERLAP = 0.25  # tiles share one part in four


def build(config: FluxAEConfig) -> Any:
    """The module without weights, on the meta device."""
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UserError(
            'FLUX\'s autoencoder needs the diffusers package: pip install "vidgen[text]"'
        ) from error
    levels = len(config.block_out_channels)
    with torch.device("meta"):
        ae: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_num_groups,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    ae.use_tiling = config.tiling
    ae.tile_sample_min_size, ae.tile_latent_min_size = config.tile_size, config.tile_size // 8
    ae.tile_overlap_factor = OVERLAP
    return ae


class FluxAE(nn.Module):
    """Encoding samples the posterior; every frame of a video is an image of its own."""

    compression = (1, 8, 8)
    causal = False

    def __init__(
        self,
        config: FluxAEConfig,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: PathOrTensors | None = None,
    ) -> None:
        """`weights` stands in for the file that `config.path` names."""
        super().__init__()
        self.latent_channels = config.latent_channels
        self.scale, self.shift = config.scale, config.shift
        self.ae = build(config)
        nn.Module.to(self.ae, dtype)  # diffusers' own `to` warns of a case that is not here
        load_weights(self.ae, config.path if weights is None else weights, device)
        self.ae.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, video_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor:
        """A sample of the posterior, drawn for each video from its own seed."""
        latent_grid(self, *video_BCTHW.shape[2:])
        posterior = self.ae.encode(_frames(video_BCTHW).to(self.ae.dtype)).latent_dist
        mean, std = (_video(x, len(video_BCTHW)) for x in (posterior.mean, posterior.std))
        sample = mean + std * posterior_noise(mean, seeds)
        return ((sample - self.shift) * self.scale).to(video_BCTHW.dtype)

    @torch.no_grad()
    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        latent = latent_BCTHW.to(self.ae.dtype) / self.scale + self.shift
        images = self.ae.decode(_frames(latent)).sample
        return _video(images, len(latent)).to(latent_BCTHW.dtype)


def _frames(video_BCTHW: Tensor) -> Tensor:
    return video_BCTHW.transpose(1, 2).flatten(0, 1)


def _video(frames_NCHW: Tensor, batch: int) -> Tensor:
    return frames_NCHW.unflatten(0, (batch, -1)).transpose(1, 2)
