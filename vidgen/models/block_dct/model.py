"""A training-free video codec: block DCT, lowest frequencies kept.

It stands where a trained autoencoder stands, so that the whole system runs with nothing to
download. It is the quickstart's default, not a product: quality ends at the frequencies kept.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.models.block_dct.config import BlockDCTConfig

FRAMES, SIDE, _ = BlockDCTConfig.compression  # the block

# One scale for all: distances between latents stay distances between videos, and the strongest
# coefficients (a block's mean) come to about unit deviation. Scaling each coefficient to unit
# deviation makes a model spend itself on detail before it has learnt where things are.
GAIN = 0.25

# Brightness and two colour differences; the rows are orthonormal, so its inverse is its transpose.
OPPONENT = torch.tensor(
    [
        [1 / math.sqrt(3)] * 3,
        [1 / math.sqrt(2), -1 / math.sqrt(2), 0.0],
        [1 / math.sqrt(6), 1 / math.sqrt(6), -2 / math.sqrt(6)],
    ]
)


def dct_matrix(size: int) -> Tensor:
    """Orthonormal DCT-II: row k holds frequency k."""
    k = torch.arange(size, dtype=torch.float64)[:, None]
    n = torch.arange(size, dtype=torch.float64)[None]
    basis = torch.cos(math.pi * k * (2 * n + 1) / (2 * size)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis.float()


class BlockDCT(nn.Module):
    """Like a causal VAE: the first frame is a latent frame alone, then one for every 4 frames."""

    compression, causal = BlockDCTConfig.compression, BlockDCTConfig.causal

    def __init__(self, config: BlockDCTConfig):
        super().__init__()
        self.config = config
        self.latent_channels = config.latent_channels
        self.register_buffer("filters", filters(config), persistent=False)

    filters: Tensor  # (latent channels, 3, 4, 8, 8), orthonormal

    @torch.no_grad()
    def encode(self, video_BCTHW: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        x = video_BCTHW.float()
        if (x.shape[2] - 1) % FRAMES or x.shape[3] % SIDE or x.shape[4] % SIDE:
            raise ValueError(f"video {tuple(x.shape)}: takes 4k+1 frames, sides in {SIDE}s")
        # The first frame stands still for one block: only temporal frequency 0 is non-zero there.
        x = torch.cat([x[:, :, :1].expand(-1, -1, FRAMES, -1, -1), x[:, :, 1:]], dim=2)
        return F.conv3d(x, self.filters, stride=self.compression) * GAIN

    @torch.no_grad()
    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        z = latent_BCTHW.float() / GAIN
        x = F.conv_transpose3d(z, self.filters, stride=self.compression)
        return x[:, :, FRAMES - 1 :].clamp(-1, 1)


def filters(config: BlockDCTConfig) -> Tensor:
    """One filter for each colour and frequency kept; strided, they are the block transform."""
    time, space = dct_matrix(FRAMES), dct_matrix(SIDE)
    planes = [
        torch.einsum(
            "c,it,jy,kx->ijkctyx",
            OPPONENT[plane],
            time[: config.temporal],
            space[:side],
            space[:side],
        ).flatten(0, 2)
        for plane, side in enumerate((config.luma, config.chroma, config.chroma))
    ]
    return torch.cat(planes)
