"""What the frozen parts of a step cost: the autoencoder's encoder and the text encoders."""

from dataclasses import dataclass

# T5-XXL's encoder: 24 layers of width 4096, inner attention width 4096, gated FFN of 10240.
_T5_LAYERS, _T5_WIDTH, _T5_FFN = 24, 4096, 10_240
_T5_WEIGHTS = _T5_LAYERS * (4 * _T5_WIDTH**2 + 3 * _T5_WIDTH * _T5_FFN)
_T5_EMBEDDING = 32_128 * _T5_WIDTH
_CLIP_L_WEIGHTS = 123_060_480  # its text tower; 77 tokens cost nothing beside T5's 512
_HUNYUAN_WEIGHTS = 246_478_803
_HUNYUAN_TILE = 256  # side of the squares it encodes, in pixels


@dataclass(frozen=True)
class Encoders:
    """Kinds are those of a recipe's `autoencoder.kind` and `text.kind`."""

    autoencoder: str
    text: str
    text_len: int

    def flops(self, frames: int, side: int) -> int:
        """Of one clip and its caption."""
        video = hunyuan_encode_flops(frames, side, side) if self.autoencoder == _HUNYUAN else 0
        text = 2 * self.text_len * _T5_WEIGHTS if self.text == _T5 else 0
        return video + text

    def weight_bytes(self) -> int:
        """Held whole on every GPU, bf16."""
        weights = _HUNYUAN_WEIGHTS if self.autoencoder == _HUNYUAN else 0
        if self.text == _T5:
            weights += _T5_WEIGHTS + _T5_EMBEDDING + _CLIP_L_WEIGHTS
        return 2 * weights

    def workspace_bytes(self, frames: int, side: int) -> int:
        """While one clip is encoded, tile by tile: about four feature maps at full size, bf16."""
        if self.autoencoder != _HUNYUAN:
            return 0
        tile = min(side, _HUNYUAN_TILE)
        return 4 * 2 * 128 * frames * tile * tile


_HUNYUAN, _T5 = "hunyuan_vae", "t5_clip"


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

    tile_positions = quarter * (min(_HUNYUAN_TILE, height) * min(_HUNYUAN_TILE, width)) // 64
    return (
        conv(full, 3, 128)
        + conv(full, 128, 128, 4)
        + conv(by_2, 128, 128)  # downsamples, as the others named after their output
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
