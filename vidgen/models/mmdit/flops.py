"""Parameters and model FLOPs of one sample, as functions of the config and the grid.

The convention: matrix products only, 2 FLOPs a multiply-add; each stream's tokens through its own
weights, modulation once a sample, attention 4 L^2 D; a backward pass is twice the forward; work
done again to save memory does not count.
"""

import math
from dataclasses import dataclass

from vidgen.models.mmdit.config import MMDiTConfig
from vidgen.models.mmdit.layouts import TIME_FREQUENCIES, tensor_shapes


@dataclass(frozen=True)
class ForwardFlops:
    """One sample's forward pass, by what it is spent on."""

    linear: int  # each token through the weights of its stream
    attention: int
    conditioning: int  # modulation and the embedders of time, pooled text and guidance

    @property
    def forward(self) -> int:
        return self.linear + self.attention + self.conditioning

    @property
    def training(self) -> int:
        """Forward and backward."""
        return 3 * self.forward


def parameters(config: MMDiTConfig) -> int:
    return sum(math.prod(shape) for shape in tensor_shapes(config).values())


def flops(config: MMDiTConfig, grid: tuple[int, int, int], text_len: int) -> ForwardFlops:
    """`grid` counts video tokens (frames, rows, columns); `text_len` text tokens."""
    width, mlp = config.hidden_size, config.mlp_hidden
    video, joint = math.prod(grid), math.prod(grid) + text_len
    blocks = config.depth + config.depth_single_blocks

    dual_weights = 3 * width * width + width * width + 2 * width * mlp  # of one stream
    single_weights = width * (3 * width + mlp) + (width + mlp) * width
    into_video = config.in_channels + (config.cond_channels if config.cond_embed else 0)
    linear = 2 * (
        video * width * (into_video + config.in_channels)  # embedders and the final layer
        + text_len * width * config.context_in_dim
        + joint * (config.depth * dual_weights + config.depth_single_blocks * single_weights)
    )

    chunks = 2 * 6 * config.depth + 3 * config.depth_single_blocks + 2  # of modulation
    embedded = TIME_FREQUENCIES + width + config.vec_in_dim + width
    if config.guidance_embed:
        embedded += TIME_FREQUENCIES + width
    return ForwardFlops(
        linear=linear,
        attention=4 * joint * joint * width * blocks,
        conditioning=2 * width * (chunks * width + embedded),
    )
