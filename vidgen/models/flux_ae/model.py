"""FLUX.1's image autoencoder: the diffusers implementation behind the autoencoder interface."""

from typing import Any

import torch
from torch import Tensor

from vidgen.errors import UserError
from vidgen.models.diffusers_ae import DiffusersAE, filled
from vidgen.models.flux_ae.config import FluxAEConfig
from vidgen.models.flux_ae.weights import published_name, published_shapes
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


class FluxAE(DiffusersAE):
    """Every frame of a video is an image of its own."""

    compression, causal = FluxAEConfig.compression, FluxAEConfig.causal

    def __init__(
        self,
        config: FluxAEConfig,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: PathOrTensors | None = None,
    ) -> None:
        """`weights` stands in for the file that `config.path` names."""
        ae, source = build(config), config.path if weights is None else weights
        ae = filled(ae, source, dtype, device, published_shapes(ae), published_name)
        super().__init__(ae, config.latent_channels, config.scale, config.shift)

    def posterior(self, video_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = super().posterior(_frames(video_BCTHW))
        return _video(mean, len(video_BCTHW)), _video(std, len(video_BCTHW))

    def pixels(self, latent_BCTHW: Tensor) -> Tensor:
        return _video(super().pixels(_frames(latent_BCTHW)), len(latent_BCTHW))


def _frames(video_BCTHW: Tensor) -> Tensor:
    return video_BCTHW.transpose(1, 2).flatten(0, 1)


def _video(frames_NCHW: Tensor, batch: int) -> Tensor:
    return frames_NCHW.unflatten(0, (batch, -1)).transpose(1, 2)
