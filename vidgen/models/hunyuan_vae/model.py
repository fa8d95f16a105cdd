"""HunyuanVideo's VAE: the diffusers implementation behind the autoencoder interface."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vidgen.errors import UserError
from vidgen.models.autoencoder import latent_grid, posterior_noise
from vidgen.models.hunyuan_vae.config import HunyuanVAEConfig
from vidgen.models.hunyuan_vae.weights import load_weights
from vidgen.models.tensor_files import PathOrTensors

OVERLAP = 4  # tiles share one part in four


def build(config: HunyuanVAEConfig) -> Any:
    """The module without weights, on the meta device."""
    try:
        from diffusers import AutoencoderKLHunyuanVideo
    except ImportError as error:
        raise UserError(
            'the HunyuanVideo VAE needs the diffusers package: pip install "vidgen[text]"'
        ) from error
    with torch.device("meta"):
        vae: Any = AutoencoderKLHunyuanVideo(
            latent_channels=config.latent_channels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_num_groups,
            scaling_factor=config.scale,
        )
    # Every tiling setting is ours: left alone, diffusers cuts time into tiles of 16 frames.
    vae.use_tiling = config.spatial_tiling
    vae.use_framewise_encoding = vae.use_framewise_decoding = config.temporal_tiling
    vae.tile_sample_min_height = vae.tile_sample_min_width = config.tile_size
    vae.tile_sample_min_num_frames = config.tile_frames
    stride = config.tile_size - config.tile_size // OVERLAP
    vae.tile_sample_stride_height = vae.tile_sample_stride_width = stride
    vae.tile_sample_stride_num_frames = config.tile_frames - config.tile_frames // OVERLAP
    return vae


class HunyuanVAE(nn.Module):
    """Encoding samples the posterior; latents are scaled to about unit variance."""

    compression = (4, 8, 8)
    causal = True

    def __init__(
        self,
        config: HunyuanVAEConfig,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: PathOrTensors | None = None,
    ) -> None:
        """`weights` stands in for the file that `config.path` names."""
        super().__init__()
        self.latent_channels = config.latent_channels
        self.scale = config.scale
        self.vae = build(config)
        nn.Module.to(self.vae, dtype)  # diffusers' own `to` warns of a case that is not here
        load_weights(self.vae, config.path if weights is None else weights, device)
        self.vae.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, video_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor:
        """A sample of the posterior, drawn for each video from its own seed."""
        latent_grid(self, *video_BCTHW.shape[2:])
        posterior = self.vae.encode(video_BCTHW.to(self.vae.dtype)).latent_dist
        noise = posterior_noise(posterior.mean, seeds)
        sample: Tensor = posterior.mean + posterior.std * noise
        return (sample * self.scale).to(video_BCTHW.dtype)

    @torch.no_grad()
    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        latent = latent_BCTHW.to(self.vae.dtype) / self.scale
        video: Tensor = self.vae.decode(latent).sample
        return video.to(latent_BCTHW.dtype)
