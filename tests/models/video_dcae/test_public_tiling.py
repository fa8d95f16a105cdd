"""The public code's tiles: where they lie, how they fade, and what the model makes of them."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from vidgen.models.video_dcae import VideoDCAEConfig
from vidgen.models.video_dcae.public_tiling import in_public_tiles

from .test_model import TINY, tiny, video
from .test_tiling import double

PUBLIC = replace(TINY, tile_frames=16, tile_size=128, tiling_rule="public")  # 4 latents an axis


class Numbered:
    """The n-th call returns n + 1 everywhere, at `scale` positions a latent."""

    def __init__(self, scale: int = 1) -> None:
        self.sizes: list[tuple[int, ...]] = []
        self.scale = scale

    def __call__(self, x: Tensor) -> Tensor:
        self.sizes.append(tuple(x.shape[2:]))
        return torch.full(
            (len(x), 1, *(n * self.scale for n in x.shape[2:])), len(self.sizes) * 1.0
        )


def along_columns(columns: int) -> tuple[list[float], list[int]]:
    run = Numbered(scale=2)
    shape = (1, 2, 2, 2 * columns)
    out = in_public_tiles(run, torch.zeros(1, 1, 1, 1, columns), shape, (4, 4, 4), 0.5)
    assert out.shape == (1, *shape)
    return out[0, 0, 0, 0].tolist(), [size[2] for size in run.sizes]


def test_tiles_start_every_stride_and_the_last_one_is_cut_off() -> None:
    """Tiles of 4 latents, 2 of them shared: 4 positions of a fade, which starts at weight 0."""
    values, sizes = along_columns(7)
    assert sizes == [4, 4, 3, 1]
    fade = [[n + k / 4 for k in range(4)] for n in (1, 2)]
    # The last tile is shorter than the seam: its fade covers its two positions.
    assert values == [1.0] * 4 + fade[0] + fade[1] + [3.0, 3.5]
    assert along_columns(4) == ([1.0] * 8, [4])


def test_a_tile_fades_with_neighbours_that_have_faded() -> None:
    """At the corner of four tiles: rows first, then columns, from the blended neighbours."""
    run = Numbered()
    out = in_public_tiles(run, torch.zeros(1, 1, 1, 6, 6), (1, 1, 6, 6), (4, 4, 4), 0.5)[0, 0, 0]
    # 3 x 3 tiles, the outermost 2 latents wide; the tile in the middle is the fifth.
    assert len(run.sizes) == 9
    half = 0.5
    up = 1 * (1 - half) + 2 * half  # at the corner, of the tile above, after its own fade
    left = 1 * (1 - half) + 4 * half
    assert out[3, 3] == left * (1 - half) + (up * (1 - half) + 5 * half) * half


def test_both_sides_are_cut_as_soon_as_one_is_larger_than_a_tile() -> None:
    run = Numbered()
    in_public_tiles(run, torch.zeros(1, 1, 1, 4, 6), (1, 1, 4, 6), (4, 4, 4), 0.5)
    assert run.sizes == [(1, h, w) for h in (4, 2) for w in (4, 4, 2)]


def test_time_is_cut_first_and_no_tile_is_a_single_latent_frame() -> None:
    run = Numbered()
    out = in_public_tiles(run, torch.zeros(1, 1, 7, 4, 4), (1, 7, 4, 4), (4, 4, 4), 0.25)
    assert run.sizes == [(4, 4, 4), (4, 4, 4)]  # at 0 and 3; the frame at 6 is of the second
    assert out[0, 0, :, 0, 0].tolist() == [1, 1, 1, 1, 2, 2, 2]


def test_what_looks_at_its_own_position_alone_comes_out_the_same() -> None:
    x = torch.randn(2, 3, 5, 7, 9)
    tiled = in_public_tiles(double, x, (3, 20, 14, 18), tile=(2, 4, 4), overlap=0.5)
    torch.testing.assert_close(tiled, double(x))


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 192, 160), (28, 32, 64)])
def test_the_model_follows_the_rule_by_name(frames: int, height: int, width: int) -> None:
    public, whole = tiny(), tiny()
    public.config, whole.config = PUBLIC, replace(PUBLIC, tiling_rule="whole")
    clip = video(frames, height, width)
    latent = public.encode(clip)
    assert latent.shape == whole.encode(clip).shape
    assert (latent - whole.encode(clip)).abs().max() > 1e-3
    again = public.decode(latent)
    assert again.shape == clip.shape
    assert (again - whole.decode(latent)).abs().max() > 1e-3
    small = video(8, 64, 96)
    assert torch.equal(public.encode(small), whole.encode(small))


def test_an_overlap_of_part_of_a_latent_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"tile_frames 8 would overlap by 0.5 latents"):
        VideoDCAEConfig(tile_frames=8, tiling_rule="public")
