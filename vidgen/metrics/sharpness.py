"""Sharpness of the frames of a video."""

from torch import Tensor
from torch.nn import functional as F

from vidgen.metrics.frames import Frames, luma_THW


def laplacian_variance(video: Frames) -> Tensor:
    """Variance of the Laplacian of luma, (T,): low for a blurred or flat frame.

    Uses the 4-neighbour kernel, at valid positions only.
    """
    luma = luma_THW(video)
    kernel = luma.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    edges = F.conv2d(luma[:, None], kernel[None, None])
    return edges.var(dim=(1, 2, 3), correction=0)
