"""Shape of HunyuanVideo's VAE, and where its weights are."""

from typing import ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt

from vidgen.config import config

Widths = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]


@config
class HunyuanVAEConfig:
    """The defaults are the published VAE: 4 x 8 x 8 compression to 16 channels."""

    compression: ClassVar[tuple[int, int, int]] = (4, 8, 8)
    causal: ClassVar[bool] = True
    kind: Literal["hunyuan_vae"] = "hunyuan_vae"
    path: str  # the published hunyuan_vae.safetensors
    latent_channels: PositiveInt = 16
    block_out_channels: Widths = (128, 256, 512, 512)
    layers_per_block: PositiveInt = 2
    norm_num_groups: PositiveInt = 32
    scale: PositiveFloat = 0.476986  # brings latents to unit variance
    # Larger videos are cut into tiles that overlap by a quarter and fade into each other.
    spatial_tiling: bool = True
    temporal_tiling: bool = False
    tile_size: PositiveInt = 256  # pixels
    tile_frames: PositiveInt = 64

    def __post_init__(self) -> None:
        # A tile, and a quarter of it, must be whole latents: 8 pixels and 4 frames.
        for name, size, unit in (
            ("tile_size", self.tile_size, 32),
            ("tile_frames", self.tile_frames, 16),
        ):
            if size % unit:
                raise ValueError(f"{name} {size} is not a multiple of {unit}")
