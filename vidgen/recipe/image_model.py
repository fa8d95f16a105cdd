"""The image model that draws the first frame of a video: text to image to video."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from vidgen.config import config
from vidgen.models.block_dct.config import BlockDCTConfig
from vidgen.models.flux_ae.config import FluxAEConfig
from vidgen.models.tensor_files import TensorFiles

LICENCES = {
    "flux_dev": "FLUX.1-dev: the FLUX.1 [dev] Non-Commercial License, no commercial use",
    "flux_schnell": "FLUX.1-schnell: Apache-2.0",
}


@config
class ImageModelConfig:
    kind: Literal["flux_dev", "flux_schnell"] = "flux_dev"
    path: str = "ckpts/flux1-dev.safetensors"
    autoencoder: Annotated[FluxAEConfig | BlockDCTConfig, Field(discriminator="kind")] = (
        FluxAEConfig(path="ckpts/flux1-dev-ae.safetensors")
    )
    resolution: str = "768px"  # of the picture, whatever the video's; its aspect ratio
    steps: PositiveInt | None = None  # null: the video's
    shift: Literal["flux", "public"] | PositiveFloat = "flux"
    """Of the timesteps, as `flow.shift`: FLUX.1-dev's own rule, or as Open-Sora's public code does.
    FLUX.1-schnell has none, 1."""
    guidance: Annotated[float, Field(ge=0)] = 4.0
    """FLUX.1-dev reads it as an input. FLUX.1-schnell is distilled to 1: one pass a step."""

    @property
    def licence(self) -> str:
        return LICENCES[self.kind]


_DEV = ImageModelConfig()
_SCHNELL = ImageModelConfig(
    kind="flux_schnell",
    path="ckpts/flux1-schnell.safetensors",
    steps=4,
    shift=1.0,
    guidance=1.0,
)
IMAGE_MODELS = {"t2i2v": _DEV, "t2i2v_schnell": _SCHNELL}


def of_file(path: str) -> ImageModelConfig:
    """The settings for a file of FLUX.1, whose tensors tell dev from schnell."""
    with TensorFiles(path) as source:
        distilled = "guidance_in.in_layer.weight" in source.infos
    return replace(_DEV if distilled else _SCHNELL, path=path)
