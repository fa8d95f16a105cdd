"""FLUX.1's image autoencoder at a tiny random size, and its tensors at full size."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from vidgen.errors import UserError
from vidgen.models.flux_ae.config import FluxAEConfig
from vidgen.models.flux_ae.model import FluxAE, build
from vidgen.models.flux_ae.weights import published_shapes

pytest.importorskip("diffusers", reason="the text extra is not installed")
TINY = FluxAEConfig(
    path="unused", latent_channels=4, block_out_channels=(8, 8, 8, 8), norm_num_groups=4,
    layers_per_block=1, tile_size=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(3)
    weights = {}
    for name, shape in published_shapes(build(TINY)).items():
        if "norm" in name:
            weights[name] = torch.full(shape, 1.0 if name.endswith("weight") else 0.0)
        else:
            fan_in = max(1, torch.Size(shape[1:]).numel())
            weights[name] = torch.randn(shape, generator=gen) / fan_in**0.5
    return weights


@pytest.fixture(scope="module")
def plain(weights: dict[str, Tensor]) -> FluxAE:
    return FluxAE(replace(TINY, tiling=False), weights=weights)


def video(frames: int, height: int, width: int, batch: int = 1) -> Tensor:
    gen = torch.Generator().manual_seed(5)
    return torch.rand(batch, 3, frames, height, width, generator=gen) * 2 - 1


def test_the_published_file_is_the_full_size_module() -> None:
    """Count, parameters and a name of every kind, as the public file has them."""
    ae = build(FluxAEConfig(path="unused"))
    shapes = published_shapes(ae)
    assert len(shapes) == 244
    assert sum(param.numel() for param in ae.parameters()) == 83_819_683
    for name, shape in {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.2.downsample.conv.bias": (512,),
        "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "encoder.mid.attn_1.norm.weight": (512,),
        "encoder.mid.block_2.conv2.weight": (512, 512, 3, 3),
        "encoder.norm_out.weight": (512,),
        "encoder.conv_out.weight": (32, 512, 3, 3),
        "decoder.conv_in.weight": (512, 16, 3, 3),
        "decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "decoder.up.3.block.2.norm1.weight": (512,),
        "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.conv_out.weight": (3, 128, 3, 3),
    }.items():
        assert shapes[name] == shape, name
    assert "decoder.up.0.upsample.conv.weight" not in shapes  # the last level keeps its size


def test_every_tensor_reaches_its_own_place(weights: dict[str, Tensor], plain: FluxAE) -> None:
    """Levels of the decoder count the other way round; nothing may land in its twin's place."""
    state = plain.module.state_dict()
    for published, ours in (
        ("decoder.up.3.block.0.conv1.weight", "decoder.up_blocks.0.resnets.0.conv1.weight"),
        ("decoder.up.1.upsample.conv.weight", "decoder.up_blocks.2.upsamplers.0.conv.weight"),
        ("encoder.down.2.block.0.conv2.bias", "encoder.down_blocks.2.resnets.0.conv2.bias"),
        ("encoder.mid.block_1.conv1.weight", "encoder.mid_block.resnets.0.conv1.weight"),
    ):
        assert torch.equal(state[ours], weights[published])
    query = state["decoder.mid_block.attentions.0.to_q.weight"]
    assert torch.equal(query, weights["decoder.mid.attn_1.q.weight"][:, :, 0, 0])


def test_shapes_there_and_back(plain: FluxAE) -> None:
    for frames in (1, 3):
        latent = plain.encode(video(frames, 32, 48), seeds=[0])
        assert latent.shape == (1, 4, frames, 4, 6)
        assert plain.decode(latent).shape == (1, 3, frames, 32, 48)


def test_encoding_samples_the_posterior_shifts_and_scales_it(plain: FluxAE) -> None:
    clip = video(1, 32, 32)
    first, again, other = (plain.encode(clip, seeds=[seed]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with torch.no_grad():
        mean, logvar = plain.module.encoder(clip[:, :, 0]).chunk(2, dim=1)
    noise = torch.randn(mean[0].shape, generator=torch.Generator().manual_seed(1))
    expected = (mean + (logvar / 2).exp() * noise - 0.1159) * 0.3611
    torch.testing.assert_close(first[:, :, 0], expected)


def test_decoding_undoes_shift_and_scale(plain: FluxAE) -> None:
    latent = torch.randn(1, 4, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = plain.module.decoder(latent[:, :, 0] / 0.3611 + 0.1159)
    torch.testing.assert_close(plain.decode(latent)[:, :, 0], expected)


def test_frames_and_videos_do_not_see_each_other(plain: FluxAE) -> None:
    clips = torch.cat([video(2, 32, 32), -video(2, 32, 32)])
    together = plain.encode(clips, seeds=[1, 2])
    torch.testing.assert_close(together[1:], plain.encode(clips[1:], seeds=[2]))
    decoded = plain.decode(together)
    torch.testing.assert_close(decoded[:, :, 1:], plain.decode(together[:, :, 1:]))
    with pytest.raises(ValueError, match="shorter"):
        plain.encode(clips, seeds=[1])


def test_tiles_are_used_only_above_the_tile_size(weights: dict[str, Tensor], plain: FluxAE) -> None:
    tiled = FluxAE(TINY, weights=weights)
    small, large = video(1, 32, 32), video(1, 64, 64)
    torch.testing.assert_close(tiled.encode(small, seeds=[0]), plain.encode(small, seeds=[0]))
    assert not torch.equal(tiled.encode(large, seeds=[0]), plain.encode(large, seeds=[0]))
    assert tiled.decode(tiled.encode(large, seeds=[0])).shape == large.shape


def test_wrong_files_and_sizes_are_refused(
    weights: dict[str, Tensor], plain: FluxAE, tmp_path: Path
) -> None:
    path = tmp_path / "ae.safetensors"
    save_file({**weights, "encoder.stray": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"'encoder.stray' \[1\] is not part of this model"):
        FluxAE(replace(TINY, path=str(path)))
    missing = {name: t for name, t in weights.items() if name != "decoder.norm_out.weight"}
    with pytest.raises(UserError, match=r"'decoder.norm_out.weight' \[8\] is missing"):
        FluxAE(TINY, weights=missing)
    with pytest.raises(ValueError, match="height 36 is not a multiple of 8"):
        plain.encode(video(1, 36, 32), seeds=[0])
    with pytest.raises(ValidationError, match="tile_size 40 is not a multiple of 32"):
        replace(TINY, tile_size=40)
