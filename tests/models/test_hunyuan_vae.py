"""HunyuanVideo's VAE at a tiny random size, and its tensors at full size."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from vidgen.errors import UserError
from vidgen.models.hunyuan_vae.config import HunyuanVAEConfig
from vidgen.models.hunyuan_vae.model import HunyuanVAE, build

pytest.importorskip("diffusers", reason="the text extra is not installed")
KEYS = Path(__file__).parents[1] / "golden" / "keys" / "keys_hunyuan_vae.txt"
TINY = HunyuanVAEConfig(
    path="unused", latent_channels=4, block_out_channels=(8, 8, 8, 8), norm_num_groups=4,
    layers_per_block=1, tile_size=32, tile_frames=16,
)  # fmt: skip


def random_weights(config: HunyuanVAEConfig) -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(3)
    weights = {}
    for name, tensor in build(config).state_dict().items():
        if "norm" in name:
            weights[name] = torch.full(tensor.shape, 1.0 if name.endswith("weight") else 0.0)
        else:
            fan_in = max(1, tensor[0].numel())
            weights[name] = torch.randn(tensor.shape, generator=gen) / fan_in**0.5
    return weights


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights(TINY)


@pytest.fixture(scope="module")
def plain(weights: dict[str, Tensor]) -> HunyuanVAE:
    return HunyuanVAE(replace(TINY, spatial_tiling=False), weights=weights)


def video(frames: int, height: int, width: int) -> Tensor:
    gen = torch.Generator().manual_seed(5)
    return torch.rand(1, 3, frames, height, width, generator=gen) * 2 - 1


def test_the_published_file_is_the_full_size_module() -> None:
    rows = (line.split("\t") for line in KEYS.read_text().splitlines())
    listed = {name: tuple(int(n) for n in re.findall(r"\d+", shape)) for name, shape in rows}
    vae = build(HunyuanVAEConfig(path="unused"))
    assert {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()} == listed
    assert sum(param.numel() for param in vae.parameters()) == 246_478_803


def test_shapes_there_and_back(plain: HunyuanVAE) -> None:
    for frames, latent_frames in ((1, 1), (5, 2), (17, 5)):
        latent = plain.encode(video(frames, 32, 48), seeds=[0])
        assert latent.shape == (1, 4, latent_frames, 4, 6)
        assert plain.decode(latent).shape == (1, 3, frames, 32, 48)


def test_encoding_samples_the_posterior_and_scales_it(plain: HunyuanVAE) -> None:
    clip = video(5, 32, 32)
    first, again, other = (plain.encode(clip, seeds=[seed]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with torch.no_grad():
        moments = plain.module.quant_conv(plain.module.encoder(clip))
    mean, logvar = moments.chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    expected = (mean + (logvar / 2).exp() * noise) * 0.476986
    torch.testing.assert_close(first, expected)


def test_a_sample_depends_on_its_own_seed_alone(plain: HunyuanVAE) -> None:
    clips = torch.cat([video(5, 32, 32), -video(5, 32, 32)])
    together = plain.encode(clips, seeds=[1, 2])
    torch.testing.assert_close(together[1:], plain.encode(clips[1:], seeds=[2]))
    with pytest.raises(ValueError, match="shorter"):
        plain.encode(clips, seeds=[1])


def test_decoding_undoes_the_scale(plain: HunyuanVAE) -> None:
    latent = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = plain.module.decoder(plain.module.post_quant_conv(latent / 0.476986))
    torch.testing.assert_close(plain.decode(latent), expected)


def test_tiles_are_used_only_above_the_tile_size(
    plain: HunyuanVAE, weights: dict[str, Tensor]
) -> None:
    tiled = HunyuanVAE(replace(TINY, temporal_tiling=True), weights=weights)
    small = video(13, 32, 32)
    assert torch.equal(tiled.encode(small, seeds=[0]), plain.encode(small, seeds=[0]))
    for large in (video(1, 64, 48), video(29, 32, 32)):
        latent = tiled.encode(large, seeds=[0])
        assert latent.shape == plain.encode(large, seeds=[0]).shape
        assert not torch.equal(latent, plain.encode(large, seeds=[0]))
        assert tiled.decode(latent).shape == large.shape
    # Time is cut only when asked: this is what the published recipes do.
    spatial = HunyuanVAE(TINY, weights=weights)
    long = video(29, 32, 32)
    assert torch.equal(spatial.encode(long, seeds=[0]), plain.encode(long, seeds=[0]))


def test_the_first_tile_starts_as_it_would_alone(weights: dict[str, Tensor]) -> None:
    tiled = HunyuanVAE(TINY, weights=weights)
    large = video(1, 64, 64)
    whole = tiled.encode(large, seeds=[0]).shape
    assert whole == (1, 4, 1, 8, 8)
    with torch.no_grad():
        corner = tiled.module.encode(large[..., :32, :32]).latent_dist.mean
        inside = tiled.module.encode(large).latent_dist.mean
    torch.testing.assert_close(inside[..., :3, :3], corner[..., :3, :3])


def test_dtypes(weights: dict[str, Tensor]) -> None:
    half = HunyuanVAE(TINY, dtype=torch.bfloat16, weights=weights)
    assert {param.dtype for param in half.parameters()} == {torch.bfloat16}
    assert half.encode(video(1, 32, 32), seeds=[0]).dtype == torch.float32


def test_wrong_files_and_sizes_are_refused(
    plain: HunyuanVAE, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "vae.safetensors"
    save_file({k: v for k, v in weights.items() if k != "quant_conv.bias"}, path)
    with pytest.raises(UserError, match=r"tensor 'quant_conv\.bias' \[8\] is missing"):
        HunyuanVAE(replace(TINY, path=str(path)))
    with pytest.raises(UserError, match=r"none\.safetensors: cannot be read"):
        HunyuanVAE(replace(TINY, path=str(tmp_path / "none.safetensors")))
    with pytest.raises(ValueError, match="4 frames: this autoencoder takes 4k\\+1"):
        plain.encode(video(4, 32, 32), seeds=[0])
    with pytest.raises(ValueError, match="height 36 is not a multiple of 8"):
        plain.encode(video(5, 36, 32), seeds=[0])
    with pytest.raises(ValidationError, match="tile_size 100 is not a multiple of 32"):
        replace(TINY, tile_size=100)
