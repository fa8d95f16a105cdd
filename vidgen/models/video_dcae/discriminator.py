"""Tells real clips from reconstructed ones, patch by patch of space and time."""

import torch
from torch import Tensor, nn


class PatchGAN3D(nn.Module):
    """(B, 3, T, H, W) to a score for each patch: above zero for real, below for reconstructed."""

    def __init__(self, width: int = 64, layers: int = 5, dropout: float = 0.3):
        """`layers` strided convolutions, one without a stride, and the one that scores."""
        super().__init__()
        parts: list[nn.Module] = [_conv(3, width, stride=(2, 2, 2)), nn.LeakyReLU(0.2)]
        channels = width
        for layer in range(1, layers + 1):
            wider = width * min(2**layer, 8)
            # Clips are short: time is halved once more, then only rows and columns are.
            side = 1 if layer == layers else 2
            parts += [
                _conv(channels, wider, stride=(2 if layer == 1 else 1, side, side), bias=False),
                nn.BatchNorm3d(wider, track_running_stats=False),  # of the batch at hand
                nn.LeakyReLU(0.2),
                nn.Dropout(dropout),
            ]
            channels = wider
        self.parts = nn.Sequential(*parts, _conv(channels, 1))

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        scores: Tensor = self.parts(video_BCTHW)
        return scores

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.BatchNorm3d):
                nn.init.normal_(module.weight, mean=1.0, std=0.02, generator=generator)
                module.bias.zero_()


def _conv(
    inputs: int, outputs: int, stride: tuple[int, int, int] = (1, 1, 1), bias: bool = True
) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)
