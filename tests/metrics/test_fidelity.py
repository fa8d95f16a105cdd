"""PSNR and SSIM by their definitions."""

import math

import pytest
import torch

from vidgen.metrics.fidelity import psnr, ssim


def test_psnr_of_a_known_error() -> None:
    video = torch.rand(2, 3, 4, 12, 12)
    assert psnr(video, video + 0.1).shape == (2, 4)
    torch.testing.assert_close(
        psnr(video, video + 0.1), torch.full((2, 4), 20.0, dtype=torch.float64), rtol=1e-5, atol=0
    )
    assert psnr(video, video).isinf().all()


def test_ssim_of_equal_frames_is_one_and_falls_with_noise() -> None:
    video = torch.rand(1, 3, 2, 16, 20)
    torch.testing.assert_close(ssim(video, video), torch.ones(1, 2, dtype=torch.float64))
    a_little, much = (ssim(video, video + s * torch.randn_like(video)) for s in (0.05, 0.5))
    assert (much < a_little).all()
    assert (a_little < 1).all()


def test_ssim_of_one_window_is_the_formula() -> None:
    """Frames of exactly one window: the weighted statistics by hand."""
    x, y = torch.rand(2, 11, 11, dtype=torch.float64)
    at = torch.arange(11, dtype=torch.float64) - 5
    bell = torch.exp(-at.square() / (2 * 1.5**2))
    weight = bell[:, None] * bell / bell.sum() ** 2
    mean_x, mean_y = (weight * x).sum(), (weight * y).sum()
    var_x, var_y = (weight * (x - mean_x) ** 2).sum(), (weight * (y - mean_y) ** 2).sum()
    both = (weight * (x - mean_x) * (y - mean_y)).sum()
    expected = ((2 * mean_x * mean_y + 1e-4) * (2 * both + 9e-4)) / (
        (mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4)
    )
    frames = (v.expand(1, 3, 1, 11, 11) for v in (x, y))
    assert math.isclose(float(ssim(*frames)), float(expected), rel_tol=1e-9)


def test_frames_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(torch.rand(1, 3, 1, 8, 32), torch.rand(1, 3, 1, 8, 32))


def test_frames_and_batches_of_pixels_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    video, other = (
        torch.randint(0, 256, (3, 12, 16, 3), generator=generator, dtype=torch.uint8)
        for _ in range(2)
    )
    x, y = ((v.double() / 255).permute(3, 0, 1, 2)[None] for v in (video, other))
    for measure in (psnr, ssim):
        found = measure(video, other)
        assert found.shape == (3,)
        assert torch.equal(found, measure(x, y)[0])
        assert torch.equal(found, measure(video.numpy(), other.numpy()))
    torch.testing.assert_close(psnr(x * 2 - 1, y * 2 - 1, peak=2), psnr(x, y))
