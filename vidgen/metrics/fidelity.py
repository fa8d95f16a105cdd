"""How close a reconstruction is to its video: PSNR and SSIM of each frame.

Beside frames as every measure takes them (`metrics.frames`), both take batches of float pixels
(B, C, T, H, W), in [0, 1] unless `peak` says otherwise, as autoencoders have them. Report the mean
over frames, so that clips of any length weigh by their frames.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vidgen.metrics.frames import Frames, frames_THWC, is_frames

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian window, as first published
K1, K2 = 0.01, 0.03
SETTINGS = (
    "pixels in [0, 1], RGB, a figure a frame, means over frames; SSIM: Gaussian window of "
    f"{WINDOW} with sigma {SIGMA}, K1 {K1}, K2 {K2}, valid positions only"
)


def psnr(video: Frames, other: Frames, *, peak: float = 1.0) -> Tensor:
    """Decibels of each frame, (T,) or (B, T); infinite for equal frames.

    `peak` is the width of the range of float pixels: 2 for [-1, 1].
    """
    if is_frames(video):
        return psnr(*map(_unit_BCTHW, (video, other)))[0]
    x, y = torch.as_tensor(video), torch.as_tensor(other)
    error = (x.double() - y.double()).square().mean(dim=(1, 3, 4)) / peak**2
    return -10 * error.log10()


def ssim(video: Frames, other: Frames) -> Tensor:
    """Structural similarity of each frame, (T,) or (B, T); 1 for equal frames."""
    if is_frames(video):
        return ssim(*map(_unit_BCTHW, (video, other)))[0]
    both_BCTHW = torch.as_tensor(video), torch.as_tensor(other)
    batch, channels, frames = both_BCTHW[0].shape[:3]
    x, y = (
        v.transpose(1, 2).reshape(batch * frames * channels, 1, *v.shape[3:]).double()
        for v in both_BCTHW
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


def _unit_BCTHW(video: Frames) -> Tensor:
    """A batch of one, in [0, 1]."""
    return (frames_THWC(video).double() / 255).permute(3, 0, 1, 2)[None]
