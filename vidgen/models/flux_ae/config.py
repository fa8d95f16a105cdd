"""Shape of FLUX.1's image autoencoder, and where its weights are."""

from typing import ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt

from vidgen.config import config

Widths = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]


@config
class FluxAEConfig:
    """The defaults are the published autoencoder: 8 x 8 compression to 16 channels."""

    compression: ClassVar[tuple[int, int, int]] = (1, 8, 8)
    causal: ClassVar[bool] = False
    kind: Literal["flux_ae"] = "flux_ae"
    path: str  # the published ae.safetensors
    latent_channels: PositiveInt = 16
    block_out_channels: Widths = (128, 256, 512, 512)
    layers_per_block: PositiveInt = 2
    norm_num_groups: PositiveInt = 32
    scale: PositiveFloat = 0.3611  # latents are (z - shift) * scale: about unit scale
    shift: float = 0.1159
    # Larger images are cut into tiles that overlap by a quarter and fade into each other.
    tiling: bool = True
    tile_size: PositiveInt = 1024  # pixels

    def __post_init__(self) -> None:
        # A tile, and a quarter of it, must be whole latents of 8 pixels.
        if self.tile_size % 32:
            raise ValueError(f"tile_size {self.tile_size} is not a multiple of 32")
