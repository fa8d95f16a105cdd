"""Shape of the Video DC-AE, and where its weights are."""

from typing import ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt

from vidgen.config import config

Six = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt]
UNIT_FRAMES, UNIT_PIXELS = 4, 32  # pixels per latent


@config
class VideoDCAEConfig:
    """The defaults are the published autoencoder: 4 x 32 x 32 compression to 128 channels."""

    compression: ClassVar[tuple[int, int, int]] = (UNIT_FRAMES, UNIT_PIXELS, UNIT_PIXELS)
    causal: ClassVar[bool] = False
    kind: Literal["video_dcae"] = "video_dcae"
    path: str | None = None  # the published F32T4C128_AE.safetensors; None: random weights
    latent_channels: PositiveInt = 128
    widths: Six = (128, 256, 512, 512, 1024, 1024)  # from the pixels down, for encoder and decoder
    encoder_depths: Six = (2, 2, 2, 3, 3, 3)
    decoder_depths: Six = (3, 3, 3, 3, 3, 3)
    head_dim: PositiveInt = 32  # of the linear attention in the last three stages
    std: PositiveFloat = (
        1.0  # deviation of raw latents, which are divided by it; published training: 0.493
    )
    # Larger videos are split into tiles that overlap and are blended.
    tiling: bool = True
    tile_frames: PositiveInt = 32
    tile_size: PositiveInt = 256  # pixels
    tile_overlap: float = 0.25
    # How tiles are cut and blended. whole: all of one size, the last of an axis moved back to end
    # with the video. public: as the public code does, the last cut off at the end; what the
    # published generator was trained on.
    tiling_rule: Literal["whole", "public"] = "whole"

    def __post_init__(self) -> None:
        # A tile with one latent frame would be treated as an image.
        for name, size, unit, least, form in (
            ("tile_frames", self.tile_frames, UNIT_FRAMES, 2 * UNIT_FRAMES, "4 from 8 on"),
            ("tile_size", self.tile_size, UNIT_PIXELS, UNIT_PIXELS, "32"),
        ):
            if size % unit or size < least:
                low = size // unit * unit
                near = (
                    f"nearest are {low} and {low + unit}" if low >= least else f"nearest is {least}"
                )
                raise ValueError(f"{name} {size} is not a multiple of {form}; the {near}")
        if not 0 <= self.tile_overlap < 1:
            raise ValueError(f"tile_overlap {self.tile_overlap:g}: expected 0 or more, below 1")
        for name, size in (("tile_frames", self.tile_frames), ("tile_size", self.tile_size)):
            shared = size // (UNIT_FRAMES if name == "tile_frames" else UNIT_PIXELS)
            shared_latents = shared * self.tile_overlap
            if self.tiling_rule == "public" and shared_latents != int(shared_latents):
                raise ValueError(
                    f"tiling_rule public: tiles of {name} {size} would overlap by "
                    f"{shared_latents:g} latents; expected a whole number"
                )
        for stage in (3, 4, 5):
            if self.widths[stage] % self.head_dim:
                raise ValueError(
                    f"widths[{stage}] = {self.widths[stage]} does not divide into heads of "
                    f"head_dim = {self.head_dim}"
                )
        for name, wide, narrow in (
            ("the encoder's last", self.widths[5], self.latent_channels),
            *(
                (f"stage {s}'s", factor * self.widths[s], self.widths[s + 1])
                for s, factor in enumerate(FACTORS)
            ),
        ):
            if wide % narrow:
                raise ValueError(
                    f"{name} shortcut cannot map {wide} channels to {narrow}: not a multiple"
                )


DOWN_FRAMES = (False, False, False, True, True)  # which of the five halvings also halve time
FACTORS = tuple(8 if frames else 4 for frames in DOWN_FRAMES)  # pixels merged into one
