"""Parameters and model FLOPs of one sample, as functions of the config and the grid.

vidgen/runtime/observe/flops.py defines what is counted; this file applies it to the model.
"""

import math
from dataclasses import dataclass

from vidgen.models.mmdit.config import MMDiTConfig
from vidgen.models.mmdit.layouts import TIME_FREQUENCIES, tensor_shapes
from vidgen.runtime.observe.flops import attention_flops, linear_flops, training_flops


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of one sample's forward pass, by component."""

    linear: int  # every token through the weights of its stream
    attention: int
    conditioning: int  # once per sample: modulation, embedders of time, pooled text and guidance

    @property
    def forward(self) -> int:
        return self.linear + self.attention + self.conditioning

    @property
    def training(self) -> int:
        """Forward and backward."""
        return training_flops(self.forward)


def parameters(config: MMDiTConfig) -> int:
    return sum(math.prod(shape) for shape in tensor_shapes(config).values())


def flops(config: MMDiTConfig, grid: tuple[int, int, int], text_len: int) -> ForwardFlops:
    """`grid` counts video tokens (frames, rows, columns); `text_len` text tokens."""
    width, mlp = config.hidden_size, config.mlp_hidden
    video = math.prod(grid)
    joint = text_len + video

    # A dual block has separate weights per stream; every token passes through one set.
    dual = (
        linear_flops(joint, width, 3 * width)
        + linear_flops(joint, width, width)
        + linear_flops(joint, width, mlp)
        + linear_flops(joint, mlp, width)
    )
    single = linear_flops(joint, width, 3 * width + mlp) + linear_flops(joint, width + mlp, width)
    around = (
        linear_flops(video, config.in_channels, width)
        + linear_flops(video, config.cond_channels if config.cond_embed else 0, width)
        + linear_flops(text_len, config.context_in_dim, width)
        + linear_flops(video, width, config.in_channels)
    )

    embedders = [TIME_FREQUENCIES, config.vec_in_dim]
    if config.guidance_embed:
        embedders.append(TIME_FREQUENCIES)
    chunks = 2 * 6 * config.depth + 3 * config.depth_single_blocks + 2  # shifts, scales, gates
    blocks = config.depth + config.depth_single_blocks
    return ForwardFlops(
        linear=around + config.depth * dual + config.depth_single_blocks * single,
        attention=blocks * attention_flops(joint, joint, width),
        conditioning=linear_flops(1, width, chunks * width)
        + sum(linear_flops(1, d, width) + linear_flops(1, width, width) for d in embedders),
    )
