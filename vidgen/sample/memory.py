"""How sampling stays within a device's memory, and how much of it a request takes."""

import math
import re
from dataclasses import dataclass, replace

import torch

from vidgen.errors import UserError
from vidgen.models.build import AutoencoderConfig
from vidgen.models.hunyuan_vae.config import HunyuanVAEConfig
from vidgen.models.mmdit.config import MMDiTConfig

# Widths of the hidden state that a single-stream block holds at its peak, for every token: its
# input, [q k v mlp], q and k rotated, what was attended, the MLP's activation, both joined for the
# last projection, and its output.
_STREAMS = 3 + 2 + 1 + 1 + 1 + 1  # and three times the MLP
_MLPS = 3
# Pictures of a tile as wide as the decoder's last blocks that its convolutions hold at once.
_DECODER_PICTURES = 5
_RESERVE = 1.2e9  # the CUDA context, workspaces of libraries, fragmentation
_TILE_FRAMES = (64, 32, 16)


def parse_memory(text: str) -> int:
    """Bytes of "24GB" (1e9 each, as cards are sold) or "22GiB"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|GiB|MB|MiB)", text.strip())
    if match is None or float(match[1]) == 0:
        raise UserError(f"--memory {text!r} is not a valid size; expected e.g. 24GB or 22GiB")
    return int(float(match[1]) * {"GB": 1e9, "GiB": 2**30, "MB": 1e6, "MiB": 2**20}[match[2]])


def activation_bytes(
    config: MMDiTConfig, grid: tuple[int, int, int], text_length: int, itemsize: int
) -> int:
    """The most one pass holds besides weights: a block's tensors, and the state in fp32."""
    video = math.prod(grid)
    widths = _STREAMS * config.hidden_size + _MLPS * config.mlp_hidden
    state = 8 * video * config.in_channels * 4  # noise, velocities of the branches, given latents
    return (video + text_length) * widths * itemsize + state


def decoder_bytes(config: AutoencoderConfig, video: tuple[int, int, int], itemsize: int) -> int:
    """An estimate of what decoding a video (frames, height, width) takes."""
    frames, height, width = video
    pixels = 3 * frames * height * width * (itemsize + 4)  # the video itself, and as fp32
    if not isinstance(config, HunyuanVAEConfig):
        return pixels
    if config.spatial_tiling:
        height, width = min(height, config.tile_size), min(width, config.tile_size)
    if config.temporal_tiling:
        frames = min(frames, config.tile_frames + 1)
    tile = frames * height * width * config.block_out_channels[0] * itemsize
    return pixels + _DECODER_PICTURES * tile


@dataclass(frozen=True)
class MemoryPlan:
    """How one shape of video fits into `limit` bytes of the device."""

    limit: int
    block_bytes: int  # left for the blocks of the model while it runs
    autoencoder: AutoencoderConfig  # tiled as far as is needed

    def describe(self, blocks: int, streamed: int) -> str:
        """One line: what is done to stay within the limit."""
        parts = ["text encoders leave after encoding", "modulation is tabulated"]
        parts.append(
            f"{streamed} of {blocks} blocks are streamed"
            if streamed
            else f"all {blocks} blocks stay on the device"
        )
        if isinstance(self.autoencoder, HunyuanVAEConfig) and self.autoencoder.temporal_tiling:
            parts.append(f"the VAE decodes {self.autoencoder.tile_frames} frames at a time")
        return f"within {self.limit / 1e9:.3g} GB: {', '.join(parts)}"


@dataclass(frozen=True)
class MemoryNeeds:
    """What takes memory besides the model's blocks."""

    video: tuple[int, int, int]  # frames, height, width
    tokens: tuple[int, int, int]
    text_length: int
    around_bytes: int  # weights that always stay: embedders, autoencoder
    table_bytes: int  # of tabulated modulation


def plan_memory(
    limit: int,
    model: MMDiTConfig,
    autoencoder: AutoencoderConfig,
    needs: MemoryNeeds,
    dtype: torch.dtype,
) -> MemoryPlan:
    taken = (
        needs.around_bytes
        + needs.table_bytes
        + activation_bytes(model, needs.tokens, needs.text_length, dtype.itemsize)
        + _RESERVE
    )
    room = limit - needs.around_bytes
    return MemoryPlan(limit, int(limit - taken), tiled(autoencoder, needs.video, room, dtype))


def tiled(
    config: AutoencoderConfig, video: tuple[int, int, int], room: float, dtype: torch.dtype
) -> AutoencoderConfig:
    """The autoencoder cut into as few tiles of time as fit; the blocks are gone when it decodes."""
    tries = [config]
    if isinstance(config, HunyuanVAEConfig):
        tries += [
            replace(config, spatial_tiling=True, temporal_tiling=True, tile_frames=frames)
            for frames in _TILE_FRAMES
        ]
    for tried in tries:
        if decoder_bytes(tried, video, dtype.itemsize) + _RESERVE <= room:
            return tried
    least = decoder_bytes(tries[-1], video, dtype.itemsize) + _RESERVE
    raise UserError(
        f"decoding {video[0]} frames of {video[1]}x{video[2]} takes about {least / 1e9:.1f} GB, "
        f"{max(0, room) / 1e9:.1f} GB are left for it; give a larger --memory, or fewer frames"
    )
