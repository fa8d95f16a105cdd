"""A training-free video codec: block DCT, lowest frequencies kept.

It stands where a trained autoencoder stands, so that the whole system runs with nothing to
download. It is the quickstart's default, not a product: quality ends at the frequencies kept.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidgen.models.block_dct.config import BlockDCTConfig

FRAMES, SIDE = 4, 8  # the block: 4 frames of 8 x 8 pixels

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

    causal = True
    compression = (FRAMES, SIDE, SIDE)

    def __init__(self, config: BlockDCTConfig):
        super().__init__()
        self.config = config
        self.latent_channels = config.latent_channels
        self.register_buffer("opponent", OPPONENT.clone(), persistent=False)
        self.register_buffer("time", dct_matrix(FRAMES), persistent=False)
        self.register_buffer("space", dct_matrix(SIDE), persistent=False)
        kept = torch.zeros(3, FRAMES, SIDE, SIDE, dtype=torch.bool)
        for plane, side in enumerate((config.luma, config.chroma, config.chroma)):
            kept[plane, : config.temporal, :side, :side] = True
        self.register_buffer("kept", kept.flatten().nonzero().squeeze(1), persistent=False)
        self.register_buffer("gain", gains()[kept], persistent=False)

    opponent: Tensor
    time: Tensor
    space: Tensor
    kept: Tensor
    gain: Tensor

    @torch.no_grad()
    def encode(self, video_BCTHW: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        x = video_BCTHW.float()
        if (x.shape[2] - 1) % FRAMES or x.shape[3] % SIDE or x.shape[4] % SIDE:
            raise ValueError(f"video {tuple(x.shape)}: takes 4k+1 frames, sides in {SIDE}s")
        # The first frame stands still for one block: only temporal frequency 0 is non-zero there.
        x = torch.cat([x[:, :, :1].expand(-1, -1, FRAMES, -1, -1), x[:, :, 1:]], dim=2)
        x = torch.einsum("pc,bcthw->bpthw", self.opponent, x)
        x = x.unflatten(4, (-1, SIDE)).unflatten(3, (-1, SIDE)).unflatten(2, (-1, FRAMES))
        coef = torch.einsum(
            "it,jy,kx,bpTtYyXx->bpijkTYX", self.time, self.space, self.space, x
        ).flatten(1, 4)
        return coef[:, self.kept] * self.gain[:, None, None, None]

    @torch.no_grad()
    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        z = latent_BCTHW.float()
        coef = z.new_zeros(z.shape[0], 3 * FRAMES * SIDE * SIDE, *z.shape[2:])
        coef[:, self.kept] = z / self.gain[:, None, None, None]
        coef = coef.unflatten(1, (3, FRAMES, SIDE, SIDE))
        x = torch.einsum("it,jy,kx,bpijkTYX->bpTtYyXx", self.time, self.space, self.space, coef)
        x = x.flatten(6).flatten(4, 5).flatten(2, 3)
        x = torch.einsum("pc,bpthw->bcthw", self.opponent, x)
        return x[:, :, FRAMES - 1 :].clamp(-1, 1)


def gains() -> Tensor:
    """Scale of each coefficient (3, 4, 8, 8): 1 / a typical deviation, the same for all here."""
    return torch.full((3, FRAMES, SIDE, SIDE), 1 / 8)
