"""From a video's size to its latent grid, and errors for unsupported sizes."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from vidgen.models.autoencoder import Autoencoder
from vidgen.models.block_dct.config import BlockDCTConfig
from vidgen.models.block_dct.model import BlockDCT
from vidgen.models.flux_ae.config import FluxAEConfig
from vidgen.models.flux_ae.model import FluxAE
from vidgen.models.geometry import Geometry
from vidgen.models.hunyuan_vae.config import HunyuanVAEConfig
from vidgen.models.hunyuan_vae.model import HunyuanVAE
from vidgen.models.video_dcae.config import VideoDCAEConfig
from vidgen.models.video_dcae.model import VideoDCAE

CAUSAL = Geometry((4, 8, 8), causal=True, patch=1)
PLAIN = Geometry((4, 32, 32), causal=False, patch=1)
IMAGES = Geometry.of(FluxAEConfig(path="ae.safetensors"))


def test_grids() -> None:
    assert CAUSAL.latent_grid(1, 8, 16) == (1, 1, 2)
    assert CAUSAL.latent_grid(5, 64, 64) == (2, 8, 8)
    assert replace(CAUSAL, patch=2).latent_grid(129, 576, 1024) == (33, 72, 128)
    assert PLAIN.latent_grid(128, 768, 1344) == (32, 24, 42)
    assert PLAIN.latent_grid(1, 32, 32) == (1, 1, 1)  # an image


@pytest.mark.parametrize(
    ("ae", "frames", "message"),
    [
        (CAUSAL, 128, r"128 frames: this autoencoder takes 4k\+1; the nearest are 125 and 129"),
        (CAUSAL, 2, r"the nearest are 1 and 5"),
        (CAUSAL, 0, r"the nearest is 1$"),
        (CAUSAL, -7, r"the nearest is 1$"),
        (PLAIN, 129, r"1 or a multiple of 4 from 8 on; the nearest are 128 and 132"),
        (PLAIN, 3, r"the nearest are 1 and 8"),
        (PLAIN, 4, r"the nearest are 1 and 8"),
        (PLAIN, 0, r"the nearest is 1$"),
    ],
)
def test_the_nearest_frame_counts_are_named(ae: Geometry, frames: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ae.latent_grid(frames, 64, 64)


@pytest.mark.parametrize(
    ("height", "width", "patch", "message"),
    [
        (60, 64, 1, "height 60 is not a multiple of 8; the nearest are 56 and 64"),
        (64, 75, 2, "width 75 is not a multiple of 16; the nearest are 64 and 80"),
        (64, 72, 2, "width 72 is not a multiple of 16; the nearest are 64 and 80"),
        (8, 64, 2, "height 8 is not a multiple of 16; the nearest is 16"),
        (64, 0, 1, "width 0 is not a multiple of 8; the nearest is 8"),
        (-9, 64, 1, "the nearest is 8"),
    ],
)
def test_the_nearest_sides_are_named(height: int, width: int, patch: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CAUSAL, patch=patch).latent_grid(5, height, width)


@pytest.mark.parametrize("ae", [CAUSAL, PLAIN])
def test_what_is_named_is_taken(ae: Geometry) -> None:
    for frames in range(-3, 12):
        try:
            ae.latent_grid(frames, 64, 64)
        except ValueError as error:
            for near in str(error).split("nearest")[1].replace("is", "").split():
                if near.isdigit():
                    ae.latent_grid(int(near), 64, 64)


@pytest.mark.parametrize("geometry", [CAUSAL, PLAIN, IMAGES])
def test_pixel_frames_of_latent_frames_are_those_they_were_made_of(geometry: Geometry) -> None:
    for frames in range(2, 70):
        if not geometry.takes(frames):
            continue
        latents = geometry.latent_frames(frames)
        assert geometry.pixel_frames(latents) == frames
        spans = [geometry.frames_behind(latent, frames) for latent in range(latents)]
        assert [i for span in spans for i in range(frames)[span]] == list(range(frames))
    assert geometry.frames_behind(0, 1) == slice(0, 1)


def test_tokens() -> None:
    geometry = Geometry((4, 8, 8), causal=True, patch=2)
    assert geometry.unit == (16, 16)
    assert geometry.side == 16
    for frames, side in product((1, 5, 129), (16, 256)):
        t, h, w = geometry.latent_grid(frames, side, 2 * side)
        assert geometry.token_grid(frames, side, 2 * side) == (t, h // 2, w // 2)
        assert geometry.tokens(frames, side, 2 * side) == t * h * w // 4
    assert IMAGES.latent_grid(7, 16, 24) == (7, 2, 3)
    with pytest.raises(ValueError, match="tokens are 8x16 pixels; expected squares"):
        _ = Geometry((4, 8, 16), patch=1).side


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (BlockDCTConfig, BlockDCT),
        (FluxAEConfig, FluxAE),
        (HunyuanVAEConfig, HunyuanVAE),
    ],
)
def test_a_config_and_its_model_compress_alike(
    config: type[Autoencoder], model: type[Autoencoder]
) -> None:
    assert (config.compression, config.causal) == (model.compression, model.causal)


@pytest.mark.parametrize(("stages", "pixels"), [(6, 32), (4, 8)])
def test_a_video_dcae_compresses_by_its_stages(stages: int, pixels: int) -> None:
    published = VideoDCAEConfig()
    config = replace(
        published,
        widths=published.widths[:stages],
        encoder_depths=published.encoder_depths[:stages],
        decoder_depths=published.decoder_depths[:stages],
        tile_size=256,
    )
    with torch.device("meta"):
        model = VideoDCAE(config)
    assert config.compression == model.compression == (4, pixels, pixels)
    assert not config.causal
    assert not model.causal
