"""The cost of the frozen encoders in a step: autoencoder and text."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from vidgen.models.video_dcae import VideoDCAE, VideoDCAEConfig

# T5-XXL's encoder: 24 layers of width 4096, inner attention width 4096, gated FFN of 10240.
_T5_LAYERS, _T5_WIDTH, _T5_FFN = 24, 4096, 10_240
_T5_WEIGHTS = _T5_LAYERS * (4 * _T5_WIDTH**2 + 3 * _T5_WIDTH * _T5_FFN)
_T5_EMBEDDING = 32_128 * _T5_WIDTH
_CLIP_L_WEIGHTS = (
    123_060_480  # its text tower; the cost of 77 tokens is negligible compared with T5's 512
)
_HUNYUAN_WEIGHTS = 246_478_803
_DCAE_WEIGHTS = 459_462_147
_TILE = 256  # side of the squares they encode, in pixels
_DCAE_TILE_FRAMES = 32


@dataclass(frozen=True)
class Encoders:
    """Kinds are those of a recipe's `autoencoder.kind` and `text.kind`."""

    autoencoder: str
    text: str
    text_len: int

    def flops(self, frames: int, side: int) -> int:
        """FLOPs of one clip and its caption."""
        video = 0
        if self.autoencoder == _HUNYUAN:
            video = hunyuan_encode_flops(frames, side, side)
        elif self.autoencoder == _DCAE:
            video = dcae_encode_flops(frames, side, side)
        text = 2 * self.text_len * _T5_WEIGHTS if self.text == _T5 else 0
        return video + text

    def weight_bytes(self) -> int:
        """Bytes of the weights in bf16, replicated on every GPU."""
        weights = {_HUNYUAN: _HUNYUAN_WEIGHTS, _DCAE: _DCAE_WEIGHTS}.get(self.autoencoder, 0)
        if self.text == _T5:
            weights += _T5_WEIGHTS + _T5_EMBEDDING + _CLIP_L_WEIGHTS
        return 2 * weights

    def workspace_bytes(self, frames: int, side: int) -> int:
        """Workspace to encode one clip, tile by tile: about four full-size feature maps in bf16."""
        if self.autoencoder not in (_HUNYUAN, _DCAE):
            return 0
        if self.autoencoder == _DCAE:
            frames = min(frames, _DCAE_TILE_FRAMES)
        tile = min(side, _TILE)
        return 4 * 2 * 128 * frames * tile * tile


_HUNYUAN, _DCAE, _T5 = "hunyuan_vae", "video_dcae", "t5_clip"


def dcae_encode_flops(frames: int, height: int, width: int) -> int:
    """FLOPs of the Video DC-AE's encoder (4x32x32): convolutions and linear attention, so constant
    per pixel. The overlap of tiles, a quarter, is not counted."""
    part = min(frames, _DCAE_TILE_FRAMES)
    return round(_dcae_tile_flops(part) * (frames / part) * (height * width / _TILE**2))


@lru_cache
def _dcae_tile_flops(frames: int) -> int:
    with torch.device("meta"):
        encoder, video = (
            VideoDCAE(VideoDCAEConfig()).encoder,
            torch.empty(1, 3, frames, _TILE, _TILE),
        )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(video)
    return counter.get_total_flops()


def hunyuan_encode_flops(frames: int, height: int, width: int) -> int:
    """FLOPs of HunyuanVideo's encoder (4x8x8): its 3x3x3 convolutions and one attention.

    Tiles overlap by a quarter, which is not counted: at 256px there is only one.
    """
    half, quarter = (frames - 1) // 2 + 1, (frames - 1) // 4 + 1
    full = frames * height * width
    by_2 = frames * height * width // 4
    by_4 = half * height * width // 16
    by_8 = quarter * height * width // 64

    def conv(positions: int, d_in: int, d_out: int, count: int = 1) -> int:
        return 2 * 27 * positions * d_in * d_out * count

    tile_positions = quarter * (min(_TILE, height) * min(_TILE, width)) // 64
    return (
        conv(full, 3, 128)
        + conv(full, 128, 128, 4)
        + conv(by_2, 128, 128)  # downsampling; like the others, named after its output
        + conv(by_2, 128, 256)
        + conv(by_2, 256, 256, 3)
        + conv(by_4, 256, 256)
        + conv(by_4, 256, 512)
        + conv(by_4, 512, 512, 3)
        + conv(by_8, 512, 512)
        + conv(by_8, 512, 512, 8)  # the last block and the middle
        + conv(by_8, 512, 32)
        + 2 * by_8 * 4 * 512 * 512
        + 4 * by_8 * tile_positions * 512
    )
