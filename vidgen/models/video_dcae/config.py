"""Shape of the Video DC-AE, and where its weights are."""

from typing import ClassVar, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from vidgen.config import config

UNIT_FRAMES, UNIT_PIXELS = 4, 32  # pixels per latent of the published autoencoder


@config
class VideoDCAEConfig:
    """The defaults are the published autoencoder: 4 x 32 x 32 compression to 128 channels.

    Each stage but the last halves rows and columns, and the last two of those halve frames too.
    Four stages compress by 4 x 8 x 8; so do three after a pixel patch of 2, at a
    quarter of the cost.
    """

    causal: ClassVar[bool] = False
    kind: Literal["video_dcae"] = "video_dcae"
    path: str | None = None  # the published F32T4C128_AE.safetensors; None: random weights
    latent_channels: PositiveInt = 128
    pixel_patch: PositiveInt = 1  # side of the pixel squares that become channels before stage 0
    widths: tuple[PositiveInt, ...] = (128, 256, 512, 512, 1024, 1024)
    """Channels of each stage from the pixels down, for encoder and decoder."""
    encoder_depths: tuple[NonNegativeInt, ...] = (2, 2, 2, 3, 3, 3)
    decoder_depths: tuple[NonNegativeInt, ...] = (3, 3, 3, 3, 3, 3)
    upsample: Literal["nearest", "shuffle"] = "nearest"
    """shuffle: channels become positions, which needs fewer layers for detail inside a latent."""
    attention_from: NonNegativeInt = 3  # first stage of linear attention; convolutions before it
    head_dim: PositiveInt = 32  # of the linear attention
    still_images: bool = False  # an image is encoded and decoded as a clip without motion
    std: PositiveFloat = 1.0
    """Deviation of raw latents, which are divided by it; published training: 0.493."""
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
        if len(self.widths) < 3:
            raise ValueError(f"widths {list(self.widths)}: expected three stages or more")
        for name in ("encoder_depths", "decoder_depths"):
            depths = getattr(self, name)
            if len(depths) != self.stages:
                raise ValueError(
                    f"{name} {list(depths)}: expected {self.stages}, one for each width"
                )
        pixels = self.compression[1]
        # A tile with one latent frame would be treated as an image.
        for name, size, unit, least, form in (
            ("tile_frames", self.tile_frames, UNIT_FRAMES, 2 * UNIT_FRAMES, "4 from 8 on"),
            ("tile_size", self.tile_size, pixels, pixels, str(pixels)),
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
            shared = size // (UNIT_FRAMES if name == "tile_frames" else pixels)
            shared_latents = shared * self.tile_overlap
            if self.tiling_rule == "public" and shared_latents != int(shared_latents):
                raise ValueError(
                    f"tiling_rule public: tiles of {name} {size} would overlap by "
                    f"{shared_latents:g} latents; expected a whole number"
                )
        for stage in range(self.attention_from, self.stages):
            if self.widths[stage] % self.head_dim:
                raise ValueError(
                    f"widths[{stage}] = {self.widths[stage]} does not divide into heads of "
                    f"head_dim = {self.head_dim}"
                )
        for name, wide, narrow in (
            ("the encoder's last", self.widths[-1], self.latent_channels),
            *(
                (f"stage {s}'s", factor * self.widths[s], self.widths[s + 1])
                for s, factor in enumerate(self.factors)
            ),
        ):
            if wide % narrow:
                raise ValueError(
                    f"{name} shortcut cannot map {wide} channels to {narrow}: not a multiple"
                )

    @property
    def stages(self) -> int:
        return len(self.widths)

    @property
    def down_frames(self) -> tuple[bool, ...]:
        """Which of the halvings of rows and columns also halve frames."""
        halvings = self.stages - 1
        return tuple(index >= halvings - 2 for index in range(halvings))

    @property
    def factors(self) -> tuple[int, ...]:
        """Positions that become one at each halving."""
        return tuple(8 if frames else 4 for frames in self.down_frames)

    @property
    def compression(self) -> tuple[int, int, int]:
        """Frames, rows and columns behind one latent."""
        pixels = self.pixel_patch * 2 ** (self.stages - 1)
        return UNIT_FRAMES, pixels, pixels
