"""How close a reconstruction is to its video: PSNR and SSIM, on tensors.

Pixels are in [0, 1]. Every frame has its own figure and the mean of these is reported, so clips of
any length weigh by their frames.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian window, as first published
K1, K2 = 0.01, 0.03
SETTINGS = (
    "pixels in [0, 1], RGB, a figure a frame, means over frames; SSIM: Gaussian window of "
    f"{WINDOW} with sigma {SIGMA}, K1 {K1}, K2 {K2}, valid positions only"
)


def psnr(video_BCTHW: Tensor, other: Tensor) -> Tensor:
    """Decibels of each frame, (B, T); infinite for equal frames."""
    error = (video_BCTHW.double() - other.double()).square().mean(dim=(1, 3, 4))
    return -10 * error.log10()


def ssim(video_BCTHW: Tensor, other: Tensor) -> Tensor:
    """Structural similarity of each frame, (B, T); 1 for equal frames."""
    batch, channels, frames = video_BCTHW.shape[:3]
    x, y = (
        v.transpose(1, 2).reshape(batch * frames * channels, 1, *v.shape[3:]).double()
        for v in (video_BCTHW, other)
    )
    if min(x.shape[2:]) < WINDOW:
        raise ValueError(f"SSIM needs frames of {WINDOW} x {WINDOW} pixels or more")
    at = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    bell = torch.exp(-at.square() / (2 * SIGMA**2))
    bell /= bell.sum()

    def blurred(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, bell.view(1, 1, -1, 1)), bell.view(1, 1, 1, -1))

    mean_x, mean_y = blurred(x), blurred(y)
    var_x = blurred(x * x) - mean_x.square()
    var_y = blurred(y * y) - mean_y.square()
    both = blurred(x * y) - mean_x * mean_y
    similar = ((2 * mean_x * mean_y + K1**2) * (2 * both + K2**2)) / (
        (mean_x.square() + mean_y.square() + K1**2) * (var_x + var_y + K2**2)
    )
    return similar.mean(dim=(1, 2, 3)).view(batch, frames, channels).mean(dim=2)
