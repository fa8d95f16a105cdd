"""The autoencoder with fewer stages: its sizes, its linear start, and latents of another scale."""

import pytest
import torch

from vidgen.models.video_dcae import VideoDCAE, VideoDCAEConfig, load_weights, save_weights
from vidgen.models.video_dcae.layers import (
    channels_to_pixels,
    pixels_to_channels,
)
from vidgen.models.video_dcae.linear_start import start_linear
from vidgen.models.video_dcae.rescale import balanced, rescale_latents

SMALL = {
    "latent_channels": 24,
    "pixel_patch": 2,
    "widths": (24, 48, 96),
    "encoder_depths": (0, 0, 1),
    "decoder_depths": (0, 1, 1),
    "upsample": "shuffle",
    "still_images": True,
}


def small(**changed):
    model = VideoDCAE(VideoDCAEConfig(**{**SMALL, **changed}))
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def smooth_clips(count=6):
    """Waves that move: far from noise, as real videos are."""
    generator = torch.Generator().manual_seed(1)
    t, y, x = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32) for n in (8, 32, 32)), indexing="ij"
    )
    clips = []
    for _ in range(count):
        a, b, c, d = torch.rand(4, generator=generator)
        wave = torch.sin(0.3 * a * x + 0.3 * b * y + 0.4 * c * t + 6 * d)
        clips.append(torch.stack([wave, 0.5 * wave, -wave]) * 0.8)
    return torch.stack(clips)


@pytest.mark.parametrize(
    ("changed", "compression"),
    [
        ({}, (4, 8, 8)),
        ({"pixel_patch": 1}, (4, 4, 4)),
        (
            {
                "pixel_patch": 1,
                "widths": (8, 16, 32, 64),
                "latent_channels": 16,
                "encoder_depths": (1, 1, 1, 1),
                "decoder_depths": (1, 1, 1, 1),
                "head_dim": 16,
            },
            (4, 8, 8),
        ),
    ],
)
def test_stages_and_pixel_patch_decide_the_compression(changed, compression):
    model = small(**changed)
    assert model.compression == model.config.compression == compression
    t, h, w = compression
    video = torch.rand(1, 3, 2 * t, 2 * h, 2 * w) * 2 - 1
    reconstruction, latent = model(video)
    assert latent.shape == (1, model.latent_channels, 2, 2, 2)
    assert reconstruction.shape == video.shape


def test_depths_must_match_the_widths():
    with pytest.raises(ValueError, match="encoder_depths"):
        VideoDCAEConfig(widths=(16, 32, 64))


def test_pixels_and_channels_are_inverse():
    x = torch.rand(2, 3, 4, 6, 8)
    assert torch.equal(channels_to_pixels(pixels_to_channels(x, 2), 2), x)
    assert (
        pixels_to_channels(x, 2)[0, :4, 0, 0, 0].tolist() == x[0, 0, 0, :2, :2].flatten().tolist()
    )


def test_a_linear_start_reconstructs_what_random_weights_cannot():
    video = smooth_clips()
    random, fitted = small(), small()
    start_linear(fitted, video)
    errors = [float((m(video)[0] - video).square().mean()) for m in (random, fitted)]
    assert errors[1] < 0.1 * errors[0]
    assert errors[1] < 0.01
    with pytest.raises(ValueError, match="upsample: shuffle"):
        start_linear(small(upsample="nearest"), video)


def test_an_image_is_a_clip_that_stands_still():
    video = smooth_clips()
    model = small()
    start_linear(model, video)
    image = video[:1, :, :1]
    reconstruction, latent = model(image)
    assert reconstruction.shape == image.shape
    assert latent.shape[2] == 1
    still = model(image.expand(-1, -1, 8, -1, -1))[1]
    assert torch.allclose(latent, still.mean(2, keepdim=True), atol=1e-5)
    assert torch.allclose(model.decode(model.encode(image)), reconstruction, atol=1e-5)


def test_rescaled_latents_give_the_same_video():
    video = smooth_clips()
    model = small()
    start_linear(model, video)
    before, latent = model(video)
    deviation = latent.std(dim=(0, 2, 3, 4)).detach()
    scale = balanced(deviation)
    rescale_latents(model, scale)
    after, scaled = model(video)
    assert torch.allclose(scaled, latent * scale.view(1, -1, 1, 1, 1), atol=1e-3)
    assert torch.allclose(after, before, atol=1e-3)
    together = (deviation * scale).square().mean().sqrt()
    assert float(together) == pytest.approx(1, rel=1e-4)
    spread = deviation * scale
    assert spread.max() / spread.min() < deviation.max() / deviation.min()


def test_small_weights_go_to_a_file_and_back(tmp_path):
    model, other = small(), small()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    save_weights(model, tmp_path / "ae.safetensors")
    load_weights(other, tmp_path / "ae.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
