"""A linear map from latents to colours, fitted to the autoencoder itself."""

from pathlib import Path

import numpy as np
import torch

from vidgen.data.read.video import read_clip
from vidgen.models.block_dct.config import BlockDCTConfig
from vidgen.models.block_dct.model import BlockDCT
from vidgen.sample.preview import PreviewFile, Projection

AE = BlockDCT(BlockDCTConfig())
CPU = torch.device("cpu")


def test_colours_are_those_of_the_video() -> None:
    colours = torch.tensor([[0.8, -0.6, 0.1], [-0.9, 0.4, 0.7]])
    video = torch.zeros(1, 3, 5, 16, 32)
    video[0, :, :, :, :16], video[0, :, :, :, 16:] = (c[:, None, None, None] for c in colours)
    picture = Projection.fit(AE, CPU).picture(AE.encode(video)[0])
    assert picture.shape == (2 * 8, 2 * 4 * 8, 3)  # two latent frames side by side
    for start in (0, 32):
        for column, colour in ((start + 4, colours[0]), (start + 20, colours[1])):
            shown = picture[4, column].astype(int)
            assert np.abs(shown - ((colour + 1) * 127.5).numpy()).max() < 8


def test_a_long_video_shows_four_frames() -> None:
    picture = Projection.fit(AE, CPU).picture(torch.zeros(AE.latent_channels, 33, 2, 3))
    assert picture.shape == (16, 4 * 3 * 8, 3)


def test_the_file_is_not_renewed_at_every_step(tmp_path: Path) -> None:
    look = PreviewFile(Projection.fit(AE, CPU), tmp_path / "a.png")
    look(1, torch.zeros(AE.latent_channels, 1, 2, 2))
    first = read_clip(tmp_path / "a.png", [0])
    look(2, torch.full((AE.latent_channels, 1, 2, 2), 9.0))
    assert (read_clip(tmp_path / "a.png", [0]) == first).all()
    look.remove()
    look.remove()
    assert not (tmp_path / "a.png").exists()
