"""Shape of the training-free block-DCT codec."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vidgen.config import config


@config
class BlockDCTConfig:
    """Blocks of 4 frames x 8 x 8 pixels; the lowest frequencies are kept, the rest is dropped."""

    compression: ClassVar[tuple[int, int, int]] = (4, 8, 8)
    causal: ClassVar[bool] = True
    kind: Literal["block_dct"] = "block_dct"
    luma: Annotated[int, Field(ge=1, le=8)] = 2  # spatial frequencies kept a side, brightness
    chroma: Annotated[int, Field(ge=1, le=8)] = 2  # the same for the two colour differences
    temporal: Annotated[int, Field(ge=1, le=4)] = 2  # temporal frequencies kept

    @property
    def latent_channels(self) -> int:
        return self.temporal * (self.luma**2 + 2 * self.chroma**2)
