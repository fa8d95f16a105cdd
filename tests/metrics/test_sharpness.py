import pytest
import torch
from torch.nn import functional as F

from vidgen.metrics.sharpness import laplacian_variance


def test_a_checkerboard_by_the_formula() -> None:
    """Every Laplacian is +-4 x 255 wide apart: 255 - 0 to four neighbours."""
    board = (torch.arange(6)[:, None] + torch.arange(6)) % 2 * 255
    video = board.to(torch.uint8)[None, :, :, None].expand(1, 6, 6, 3)
    assert laplacian_variance(video).item() == pytest.approx((4 * 255) ** 2)


def test_flat_and_sloped_frames_have_none() -> None:
    slope = (torch.arange(8) * 20).to(torch.uint8)[None, None, :, None].expand(2, 5, 8, 3)
    assert laplacian_variance(slope).tolist() == pytest.approx([0, 0], abs=1e-9)


def test_blur_lowers_it() -> None:
    noise = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    blurred = F.avg_pool2d(noise.float(), 3, 1, 1).round().long()
    sharp, soft = (
        laplacian_variance(x.to(torch.uint8).permute(0, 2, 3, 1)) for x in (noise, blurred)
    )
    assert soft < sharp / 5
