"""The training-free codec: an orthonormal transform whose first frame stands alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vidgen.models.block_dct.config import BlockDCTConfig
from vidgen.models.block_dct.model import GAIN, BlockDCT, dct_matrix, filters
from vidgen.models.geometry import Geometry

ALL = BlockDCTConfig(luma=8, chroma=8, temporal=4)


def video(frames: int, batch: int = 1, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(batch, 3, frames, height, width) * 1.8 - 0.9


@pytest.mark.parametrize("size", [1, 4, 8])
def test_the_basis_is_orthonormal_and_rises_in_frequency(size: int) -> None:
    basis = dct_matrix(size)
    torch.testing.assert_close(basis @ basis.T, torch.eye(size), atol=1e-6, rtol=0)
    changes = (basis[:, 1:].sign() != basis[:, :-1].sign()).sum(1)
    assert changes.tolist() == list(range(size))


@pytest.mark.parametrize("config", [BlockDCTConfig(), ALL, BlockDCTConfig(luma=3, chroma=1)])
def test_the_filters_are_orthonormal(config: BlockDCTConfig) -> None:
    flat = filters(config).flatten(1)
    assert flat.shape == (config.latent_channels, 3 * 4 * 8 * 8)
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat)), atol=5e-6, rtol=0)


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_with_every_frequency_nothing_is_lost(frames: int) -> None:
    ae, clip = BlockDCT(ALL), video(frames, batch=2)
    latent = ae.encode(clip, [0, 1])
    assert latent.shape == (2, ae.latent_channels, *Geometry.of(ae).latent_grid(frames, 16, 24))
    torch.testing.assert_close(ae.decode(latent), clip, atol=1e-5, rtol=0)


def test_what_is_kept_is_kept_exactly() -> None:
    """Decoding and encoding again changes nothing: the codec is a projection."""
    ae = BlockDCT(BlockDCTConfig())
    latent = ae.encode(0.3 * video(9))  # far from where pixels are clamped
    once = ae.decode(latent)
    torch.testing.assert_close(ae.encode(once), latent, atol=1e-5, rtol=0)
    torch.testing.assert_close(ae.decode(ae.encode(once)), once, atol=1e-5, rtol=0)


def test_distances_between_latents_are_distances_between_videos() -> None:
    ae = BlockDCT(ALL)
    a, b = video(8 + 1), video(8 + 1)
    a[:, :, 0] = b[:, :, 0]  # the first frame stands for four
    apart = (ae.encode(a) - ae.encode(b)).norm() / GAIN
    torch.testing.assert_close(apart, (a - b).norm(), atol=1e-3, rtol=1e-4)


def test_the_first_frame_is_a_latent_alone() -> None:
    ae, clip = BlockDCT(BlockDCTConfig()), video(9)
    whole = ae.encode(clip)
    torch.testing.assert_close(whole[:, :, :1], ae.encode(clip[:, :, :1]))
    torch.testing.assert_close(whole[:, :, :2], ae.encode(clip[:, :, :5]))
    other = clip.clone()
    other[:, :, 5:] = 0
    torch.testing.assert_close(ae.encode(other)[:, :, :2], whole[:, :, :2])
    assert not torch.allclose(ae.encode(other)[:, :, 2:], whole[:, :, 2:])
    torch.testing.assert_close(ae.decode(whole)[:, :, :1], ae.decode(whole[:, :, :1]))
    assert ae.decode(whole[:, :, :1]).shape == (1, 3, 1, 16, 24)


def test_a_still_frame_has_no_temporal_frequencies() -> None:
    still = BlockDCT(replace(ALL, luma=2, chroma=2)).encode(video(1))
    by_plane = still.unflatten(1, (3, 4, 4))  # plane, temporal frequency, spatial
    assert by_plane[:, :, 1:].abs().max() < 1e-5
    assert by_plane[:, :, 0].abs().max() > 0.1


def test_noise_decodes_to_pixels_in_range() -> None:
    ae = BlockDCT(BlockDCTConfig())
    pixels = ae.decode(10 * torch.randn(1, ae.latent_channels, 2, 2, 2))
    assert (pixels.min(), pixels.max()) == (-1, 1)


@pytest.mark.parametrize("shape", [(4, 16, 16), (0, 16, 16), (5, 12, 16), (5, 16, 20)])
def test_other_sizes_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"takes 4k\+1 frames, sides in 8s"):
        BlockDCT(BlockDCTConfig()).encode(torch.zeros(1, 3, *shape))
