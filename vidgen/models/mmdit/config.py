"""Shapes of the multimodal diffusion transformer, and the published ones by name."""

from dataclasses import replace
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from vidgen import limits
from vidgen.config import config

Blocks = Annotated[PositiveInt, Field(le=limits.MODEL_DEPTH)]
Size = Annotated[PositiveInt, Field(le=limits.MODEL_WIDTH)]


@config
class MMDiTConfig:
    """Field names follow the published checkpoints; the defaults are the 11B video model."""

    in_channels: Size = 64  # width of a latent token: latent channels * patch_size^2
    patch_size: Size = 2
    hidden_size: Size = 3072
    num_heads: Size = 24
    depth: Blocks = 19  # dual-stream blocks: text and video keep their own weights
    depth_single_blocks: Blocks = 38  # single-stream blocks: both share one set
    mlp_ratio: Annotated[PositiveFloat, Field(le=limits.MODEL_RATIO)] = 4.0
    axes_dim: tuple[Size, Size, Size] = (16, 56, 56)  # RoPE: T, H, W
    theta: PositiveInt = 10_000
    qkv_bias: bool = True
    vec_in_dim: Size = 768  # pooled text vector (CLIP-L)
    context_in_dim: Size = 4096  # text tokens (T5-XXL)
    guidance_embed: bool = False
    cond_embed: bool = True  # image and video conditions: mask and masked latent

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into num_heads {self.num_heads}"
            )
        if sum(self.axes_dim) != self.head_dim or any(d % 2 for d in self.axes_dim):
            raise ValueError(
                f"axes_dim {self.axes_dim} must be even and sum to the head width {self.head_dim} "
                f"(hidden_size / num_heads)"
            )
        if self.in_channels % self.patch_size**2:
            raise ValueError(
                f"in_channels {self.in_channels} is not a multiple of "
                f"patch_size^2 = {self.patch_size**2}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_hidden(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def latent_channels(self) -> int:
        return self.in_channels // self.patch_size**2

    @property
    def cond_channels(self) -> int:
        """Width of a condition token: the masked latent and one mask channel, patched."""
        return self.in_channels + self.patch_size**2


OPENSORA_V2 = MMDiTConfig()
PRESETS = {
    "opensora_v2": OPENSORA_V2,
    "opensora_v2_t2v": replace(OPENSORA_V2, cond_embed=False),
    "opensora_v2_dcae": replace(OPENSORA_V2, in_channels=128, patch_size=1),
    "flux_dev": replace(OPENSORA_V2, guidance_embed=True, cond_embed=False),
    "flux_schnell": replace(OPENSORA_V2, cond_embed=False),
    "tiny": MMDiTConfig(
        hidden_size=64, num_heads=2, depth=1, depth_single_blocks=2, axes_dim=(8, 12, 12)
    ),
}
