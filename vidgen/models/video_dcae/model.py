"""The Video DC-AE: 32 x 32 pixels of 4 frames become one latent of 128 channels.

Encoder and decoder have six stages (fewer compress less): residual convolutions near the pixels,
linear attention near the latents; every change of resolution has a shortcut without weights. The
model is not causal. An image is a video of one frame and has one latent frame.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.models.geometry import Geometry
from vidgen.models.video_dcae.config import UNIT_FRAMES, VideoDCAEConfig
from vidgen.models.video_dcae.layers import (
    AttentionBlock,
    Downsample,
    Project,
    ResBlock,
    RMSNorm3d,
    ShuffleUpsample,
    Upsample,
    channels_to_pixels,
    conv,
    pixels_to_channels,
)
from vidgen.models.video_dcae.public_tiling import in_public_tiles
from vidgen.models.video_dcae.tiling import in_tiles

STILL_LATENTS = 2  # latent frames of the clip that an image becomes with `still_images`


def blocks(config: VideoDCAEConfig, stage: int, depth: int) -> nn.ModuleList:
    width = config.widths[stage]
    if stage < config.attention_from:
        return nn.ModuleList(ResBlock(width) for _ in range(depth))
    return nn.ModuleList(AttentionBlock(width, config.head_dim) for _ in range(depth))


class EncoderStage(nn.Module):
    def __init__(self, config: VideoDCAEConfig, stage: int):
        super().__init__()
        self.blocks = blocks(config, stage, config.encoder_depths[stage])
        self.down = (
            Downsample(config.widths[stage], config.widths[stage + 1], config.down_frames[stage])
            if stage < config.stages - 1
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.down(x)
        return out


class DecoderStage(nn.Module):
    def __init__(self, config: VideoDCAEConfig, stage: int):
        super().__init__()
        up = Upsample if config.upsample == "nearest" else ShuffleUpsample
        self.up = (
            up(config.widths[stage + 1], config.widths[stage], config.down_frames[stage])
            if stage < config.stages - 1
            else nn.Identity()
        )
        self.blocks = blocks(config, stage, config.decoder_depths[stage])

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        for block in self.blocks:
            x = block(x)
        return x


class Encoder(nn.Module):
    def __init__(self, config: VideoDCAEConfig):
        super().__init__()
        self.patch = config.pixel_patch
        self.project_in = conv(3 * self.patch**2, config.widths[0], 3)
        self.stages = nn.ModuleList(EncoderStage(config, stage) for stage in range(config.stages))
        self.project_out = Project(config.widths[-1], config.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_stage(x, 1)[0]

    def with_stage(self, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """The latents, and the output of a stage, counted from 1."""
        x = self.project_in(pixels_to_channels(x, self.patch))
        kept = x
        for index, stage in enumerate(self.stages, 1):
            x = stage(x)
            kept = x if index == number else kept
        return self.project_out(x), kept


class Decoder(nn.Module):
    def __init__(self, config: VideoDCAEConfig):
        super().__init__()
        self.project_in = Project(config.latent_channels, config.widths[-1])
        self.stages = nn.ModuleList(DecoderStage(config, stage) for stage in range(config.stages))
        self.norm_out = RMSNorm3d(config.widths[0])
        self.patch = config.pixel_patch
        self.project_out = conv(config.widths[0], 3 * self.patch**2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project_in(x)
        for stage in reversed(self.stages):
            x = stage(x)
        return channels_to_pixels(self.project_out(F.relu(self.norm_out(x))), self.patch)


class VideoDCAE(nn.Module):
    """The autoencoder. It is deterministic: `encode` ignores its seeds."""

    causal = VideoDCAEConfig.causal

    def __init__(self, config: VideoDCAEConfig) -> None:
        super().__init__()
        self.config, self.latent_channels = config, config.latent_channels
        self.compression = config.compression
        self.encoder, self.decoder = Encoder(config), Decoder(config)

    def forward(self, video_BCTHW: Tensor, stage: int | None = None) -> tuple[Tensor, Tensor]:
        """Reconstruction and raw latents for training, with gradients and without tiling.

        With `stage`, counted from 1, the output of that encoder stage instead of the latents.
        """
        Geometry.of(self).latent_grid(*video_BCTHW.shape[2:])
        if stage is not None:
            latent, kept = self.encoder.with_stage(video_BCTHW, stage)
            return self.decoder(latent), kept
        latent = self._encode_whole(video_BCTHW)
        return self._decode_whole(latent), latent

    def _encode_whole(self, x: Tensor) -> Tensor:
        if self.config.still_images and x.shape[2] == 1:
            still = x.expand(-1, -1, STILL_LATENTS * UNIT_FRAMES, -1, -1)
            latent: Tensor = self.encoder(still)
            return latent.mean(dim=2, keepdim=True)
        whole: Tensor = self.encoder(x)
        return whole

    def _decode_whole(self, latent: Tensor) -> Tensor:
        if self.config.still_images and latent.shape[2] == 1:
            video: Tensor = self.decoder(latent.expand(-1, -1, STILL_LATENTS, -1, -1))
            return video.mean(dim=2, keepdim=True)
        whole: Tensor = self.decoder(latent)
        return whole

    @torch.no_grad()
    def encode(self, video_BCTHW: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        grid = Geometry.of(self).latent_grid(*video_BCTHW.shape[2:])
        x = video_BCTHW.to(self.dtype)
        latent = self._in_tiles(self._encode_whole, x, (self.latent_channels, *grid))
        return (latent / self.config.std).to(video_BCTHW.dtype)

    @torch.no_grad()
    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        latent = (latent_BCTHW * self.config.std).to(self.dtype)
        frames, height, width = latent.shape[2:]
        frames = frames if frames == 1 else frames * UNIT_FRAMES
        rows, columns = self.compression[1:]
        shape = (3, frames, height * rows, width * columns)
        return self._in_tiles(self._decode_whole, latent, shape).to(latent_BCTHW.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.project_in.weight.dtype

    def _in_tiles(
        self, run: Callable[[Tensor], Tensor], x: Tensor, shape: tuple[int, int, int, int]
    ) -> Tensor:
        c = self.config
        if not c.tiling:
            return run(x)
        side = c.tile_size // self.compression[1]
        latents = (c.tile_frames // UNIT_FRAMES, side, side)
        rule = in_public_tiles if c.tiling_rule == "public" else in_tiles
        return rule(run, x, shape, latents, c.tile_overlap)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Initialise: convolutions preserve variance, blocks start close to their shortcut.

        The public code uses a deviation of 0.02 everywhere, which only suits its own widths.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                deviation = module.weight[0].numel() ** -0.5
                nn.init.trunc_normal_(module.weight, std=deviation, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, RMSNorm3d):
                module.weight.fill_(1.0 if module is self.decoder.norm_out else 0.1)
                module.bias.zero_()
