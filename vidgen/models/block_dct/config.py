"""Shape of the training-free block-DCT codec."""

from typing import Annotated

from pydantic import Field, PositiveFloat

from vidgen.config import config


@config
class BlockDCTConfig:
    """Blocks of 4 frames x 8 x 8 pixels; the lowest frequencies are kept, the rest is dropped."""

    luma: Annotated[int, Field(ge=1, le=8)] = 4  # spatial frequencies kept a side, brightness
    chroma: Annotated[int, Field(ge=1, le=8)] = 2  # the same for the two colour differences
    temporal: Annotated[int, Field(ge=1, le=4)] = 2  # temporal frequencies kept
    gain: PositiveFloat = 1.0  # scales latents to about unit variance
