"""How sharp the frames of a video are."""

from torch import Tensor
from torch.nn import functional as F

from vidgen.metrics.frames import Frames, luma_THW


def laplacian_variance(video: Frames) -> Tensor:
    """Variance of the brightness's Laplacian, (T,): low where a frame is blurred or flat.

    The kernel is the 4-neighbour one, at the positions where it lies inside the picture.
    """
    luma = luma_THW(video)
    kernel = luma.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    edges = F.conv2d(luma[:, None], kernel[None, None])
    return edges.var(dim=(1, 2, 3), correction=0)
