"""HunyuanVideo's VAE: the diffusers implementation behind the autoencoder interface."""

from typing import Any

import torch

from vidgen.errors import UserError
from vidgen.models.diffusers_ae import DiffusersAE, filled
from vidgen.models.hunyuan_vae.config import HunyuanVAEConfig
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


class HunyuanVAE(DiffusersAE):
    compression, causal = HunyuanVAEConfig.compression, HunyuanVAEConfig.causal

    def __init__(
        self,
        config: HunyuanVAEConfig,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: PathOrTensors | None = None,
    ) -> None:
        """`weights` stands in for the file that `config.path` names."""
        vae, source = build(config), config.path if weights is None else weights
        # The published file has the tensor names of diffusers.
        shapes = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
        vae = filled(vae, source, dtype, device, shapes)
        super().__init__(vae, config.latent_channels, config.scale)
