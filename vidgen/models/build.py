"""Building the parts a recipe names: transformer, autoencoder, text encoder."""

from typing import Annotated

import torch
from pydantic import Field

from vidgen.models.autoencoder import Autoencoder
from vidgen.models.block_dct.config import BlockDCTConfig
from vidgen.models.hunyuan_vae.config import HunyuanVAEConfig
from vidgen.models.text.config import TextConfig
from vidgen.models.text.encoder import TextEncoder

AutoencoderConfig = Annotated[BlockDCTConfig | HunyuanVAEConfig, Field(discriminator="kind")]


def build_autoencoder(
    config: AutoencoderConfig, device: torch.device, dtype: torch.dtype
) -> Autoencoder:
    if isinstance(config, BlockDCTConfig):
        from vidgen.models.block_dct.model import BlockDCT

        return BlockDCT(config).to(device)
    from vidgen.models.hunyuan_vae.model import HunyuanVAE

    return HunyuanVAE(config, device=device, dtype=dtype)


def build_text(config: TextConfig, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    if config.kind == "builtin":
        from vidgen.models.text.builtin import BuiltinText

        return BuiltinText(config).to(device)
    from vidgen.models.text.t5_clip import T5ClipText

    return T5ClipText(config, device=device, dtype=dtype)
