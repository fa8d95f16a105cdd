"""Builds the parts a recipe names: transformer, autoencoder, text encoder."""

from typing import Annotated

import torch
from pydantic import Field

from vidgen.errors import UserError
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.block_dct.config import BlockDCTConfig
from vidgen.models.flux_ae.config import FluxAEConfig
from vidgen.models.hunyuan_vae.config import HunyuanVAEConfig
from vidgen.models.mmdit.config import MMDiTConfig
from vidgen.models.text.config import TextConfig
from vidgen.models.text.encoder import TextEncoder
from vidgen.models.video_dcae.config import VideoDCAEConfig

AutoencoderConfig = Annotated[
    BlockDCTConfig | HunyuanVAEConfig | FluxAEConfig | VideoDCAEConfig,
    Field(discriminator="kind"),
]


def build_autoencoder(
    config: AutoencoderConfig, device: torch.device, dtype: torch.dtype
) -> Autoencoder:
    if isinstance(config, BlockDCTConfig):
        from vidgen.models.block_dct.model import BlockDCT

        return BlockDCT(config).to(device)
    if isinstance(config, FluxAEConfig):
        from vidgen.models.flux_ae.model import FluxAE

        return FluxAE(config, device=device, dtype=dtype)
    if isinstance(config, VideoDCAEConfig):
        return _build_video_dcae(config, device, dtype)
    from vidgen.models.hunyuan_vae.model import HunyuanVAE

    return HunyuanVAE(config, device=device, dtype=dtype)


def _build_video_dcae(
    config: VideoDCAEConfig, device: torch.device, dtype: torch.dtype
) -> Autoencoder:
    from vidgen.models.video_dcae import VideoDCAE, load_weights

    if config.path is None:
        raise UserError("autoencoder.path is not set: name the Video DC-AE's weights")
    with torch.device("meta"):
        model = VideoDCAE(config).to(dtype)
    load_weights(model, config.path, device)
    return model.eval().requires_grad_(False)


def build_text(config: TextConfig, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    if config.kind == "builtin":
        from vidgen.models.text.builtin import BuiltinText

        return BuiltinText(config).to(device)
    from vidgen.models.text.t5_clip import T5ClipText

    return T5ClipText(config, device=device, dtype=dtype)


def check_parts_fit(
    model: MMDiTConfig, autoencoder: Autoencoder, text: TextEncoder | TextConfig
) -> None:
    """Check that the widths of a recipe's parts match; the text's widths come from its config."""
    for key, has, part, gives in (
        ("in_channels", model.latent_channels, "the autoencoder", autoencoder.latent_channels),
        ("context_in_dim", model.context_in_dim, "text tokens", text.token_width),
        ("vec_in_dim", model.vec_in_dim, "pooled text", text.pooled_width),
    ):
        if has != gives:
            want = gives * model.patch_size**2 if key == "in_channels" else gives
            raise UserError(
                f"model.{key} does not fit: the model takes {has} channels from {part}, which "
                f"gives {gives}; set model.{key}={want}"
            )
