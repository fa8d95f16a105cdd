"""The Video DC-AE: published values and names, images, tiles, refusals."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor, nn

from vidgen.errors import UserError
from vidgen.models.video_dcae import VideoDCAE, VideoDCAEConfig, load_weights, save_weights
from vidgen.models.video_dcae.layers import (
    Conv3d,
    channels_to_space,
    linear_attention,
    space_to_channels,
)
from vidgen.models.video_dcae.weights import published_name
from vidgen.recipe.autoencoder import AutoencoderRecipe
from vidgen.recipe.reader import read_recipe

GOLDEN = Path(__file__).parents[2] / "golden"
TINY = VideoDCAEConfig(
    latent_channels=16, widths=(8, 8, 16, 32, 32, 32), encoder_depths=(1,) * 6,
    decoder_depths=(1,) * 6, tile_frames=8, tile_size=64,
)  # fmt: skip


def tiny(**changes: object) -> VideoDCAE:
    torch.manual_seed(0)
    model = VideoDCAE(replace(TINY, **changes))
    model.init_weights()
    return model


def video(frames: int, height: int, width: int, batch: int = 1) -> Tensor:
    gen = torch.Generator().manual_seed(5)
    return torch.rand(batch, 3, frames, height, width, generator=gen) * 2 - 1


def golden() -> tuple[VideoDCAE, dict[str, Tensor]]:
    with safe_open(GOLDEN / "dcae_tiny.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = VideoDCAE(TINY)
    weights = {k.removeprefix("weight/"): v for k, v in tensors.items() if k.startswith("weight/")}
    load_weights(model, weights)
    return model, tensors


def test_published_values() -> None:
    model, tensors = golden()
    reconstruction, latent = model(tensors["input"])
    torch.testing.assert_close(latent, tensors["latent"], rtol=0, atol=1e-5)
    torch.testing.assert_close(reconstruction, tensors["output"], rtol=0, atol=1e-5)
    assert torch.equal(model.encode(tensors["input"]), latent)
    assert torch.equal(model.decode(latent), reconstruction)


def test_published_names_and_sizes() -> None:
    rows = (
        line.split("\t")
        for line in (GOLDEN / "keys" / "keys_video_dc_ae.txt").read_text().splitlines()
    )
    listed = {name: tuple(int(n) for n in re.findall(r"\d+", shape)) for name, shape in rows}
    with torch.device("meta"):
        model = VideoDCAE(VideoDCAEConfig())
        wide = VideoDCAE(VideoDCAEConfig(latent_channels=256))
    state = model.state_dict()
    assert {published_name(name, model): tuple(t.shape) for name, t in state.items()} == listed
    assert len(listed) == 339
    assert sum(param.numel() for param in model.parameters()) == 459_462_147
    assert wide.encoder.project_out.conv.weight.shape == (256, 1024, 3, 3, 3)


def test_weights_there_and_back(tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "ae.safetensors"
    save_weights(model, path)
    with torch.device("meta"):
        again = VideoDCAE(TINY)
    load_weights(again, path)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    with pytest.raises(UserError, match="exists already"):
        save_weights(model, path)


def test_weights_of_another_width_are_named(tmp_path: Path) -> None:
    path = tmp_path / "ae.safetensors"
    save_weights(tiny(), path)
    other = VideoDCAE(replace(TINY, widths=(8, 8, 16, 32, 32, 64)))
    with pytest.raises(UserError, match=r"'encoder.stages.4.op_list.1.main.conv.weight' is \[32"):
        load_weights(other, path)


@pytest.mark.parametrize("frames", [1, 8, 12])
def test_shapes_there_and_back(frames: int) -> None:
    model, clip = tiny(tiling=False), video(frames, 32, 96, batch=2)
    latent = model.encode(clip)
    assert latent.shape == (2, 16, max(1, frames // 4), 1, 3)
    assert model.decode(latent).shape == clip.shape


def test_a_video_does_not_see_its_neighbours_in_the_batch() -> None:
    model, clips = tiny(), video(8, 64, 64, batch=2)
    torch.testing.assert_close(model.encode(clips)[1:], model.encode(clips[1:]))


def test_latents_are_divided_by_their_deviation() -> None:
    plain, clip = tiny(), video(8, 64, 64)
    scaled = tiny(std=0.5)
    torch.testing.assert_close(scaled.encode(clip), plain.encode(clip) / 0.5)
    torch.testing.assert_close(scaled.decode(scaled.encode(clip)), plain.decode(plain.encode(clip)))


def test_every_parameter_has_a_gradient() -> None:
    model, _ = golden()  # initial weights leave ReLU attention nearly empty
    reconstruction, latent = model(video(8, 64, 64))
    (reconstruction.square().mean() + latent.square().mean()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("stride", [1, (1, 2, 2), 2])
@pytest.mark.parametrize(("inputs", "outputs", "kernel", "groups"), [(3, 8, 3, 1), (8, 16, 1, 2)])
def test_convolutions_are_torch_s(
    stride: Any, inputs: int, outputs: int, kernel: int, groups: int
) -> None:
    ours = Conv3d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
    theirs = nn.Conv3d(inputs, outputs, kernel, stride, kernel // 2, groups=groups).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, inputs, 4, 6, 10, requires_grad=True)
    twin = x.detach().double().requires_grad_()
    out, expected = ours(x), theirs(twin)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad.double())
    for a, b in ((x.grad, twin.grad), *((p.grad, theirs.get_parameter(n).grad)
                                        for n, p in ours.named_parameters())):  # fmt: skip
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_a_small_video_is_not_gathered_into_columns() -> None:
    """What torch does with a single one on the CPU takes several times as long."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    model = tiny()
    with torch.profiler.profile() as watched:
        model.encode(video(8, 64, 64))
    called = {event.key for event in watched.key_averages()}
    assert "aten::mkldnn_convolution" in called
    assert not any("slow_conv3d" in name for name in called)


def test_other_dtypes_and_compilers_take_torch_s_convolution() -> None:
    layer, x = Conv3d(3, 4, 3, padding=1), torch.randn(1, 3, 4, 8, 8)
    assert layer.double()(x.double()).dtype == torch.float64
    layer.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    assert layer(x[:0]).shape == (0, 4, 4, 8, 8)


@pytest.mark.parametrize("frames", [False, True])
def test_space_to_channels_and_back(frames: bool) -> None:
    x = torch.randn(2, 3, 4, 6, 8)
    gathered = space_to_channels(x, frames)
    assert gathered.shape == (2, 24 if frames else 12, 2 if frames else 4, 3, 4)
    assert torch.equal(channels_to_space(gathered, frames), x)
    if not frames:  # torch has it for images
        images = x.transpose(1, 2).flatten(0, 1)
        expected = nn.functional.pixel_unshuffle(images, 2).unflatten(0, (2, 4)).transpose(1, 2)
        assert torch.equal(gathered, expected)


def test_linear_attention_is_what_its_definition_says() -> None:
    q, k, v = (torch.randn(2, 3, 4, 10, dtype=torch.float64) for _ in range(3))
    q[..., 0, :], k[..., 0, :] = q[..., 0, :].abs(), k[..., 0, :].abs()  # no query sees nothing
    weights = q.relu().transpose(-1, -2) @ k.relu()  # (queries, keys)
    expected = (weights @ v.transpose(-1, -2)) / weights.sum(-1, keepdim=True)
    out = linear_attention(q, k, v).transpose(-1, -2)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_close() -> None:
    model, tensors = golden()
    latent = model.bfloat16().encode(tensors["input"])
    assert latent.dtype == tensors["input"].dtype
    error = (latent - tensors["latent"]).norm() / tensors["latent"].norm()
    assert error < 0.02


@pytest.mark.parametrize(
    ("frames", "height", "width", "message"),
    [
        (5, 64, 64, r"5 frames: .* 1 or a multiple of 4 from 8 on; the nearest are 1 and 8"),
        (4, 64, 64, r"4 frames: .* 1 or a multiple of 4 from 8 on; the nearest are 1 and 8"),
        (10, 64, 64, r"10 frames: .*; the nearest are 8 and 12"),
        (8, 48, 64, "height 48 is not a multiple of 32; the nearest are 32 and 64"),
        (8, 64, 16, "width 16 is not a multiple of 32; the nearest is 32"),
    ],
)
def test_sizes_that_do_not_divide(frames: int, height: int, width: int, message: str) -> None:
    for call in (tiny().encode, tiny()):
        with pytest.raises(ValueError, match=message):
            call(video(frames, height, width))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile_size": 80}, "tile_size 80 is not a multiple of 32; the nearest are 64 and 96"),
        ({"tile_size": 8}, "tile_size 8 is not a multiple of 32; the nearest is 32"),
        ({"tile_frames": 2}, "tile_frames 2 is not a multiple of 4 from 8 on; the nearest is 8"),
        ({"tile_frames": 4}, "tile_frames 4 is not a multiple of 4 from 8 on; the nearest is 8"),
        ({"tile_frames": 10}, "tile_frames 10 .* on; the nearest are 8 and 12"),
        ({"tile_overlap": 1.0}, "tile_overlap 1: expected 0 or more, below 1"),
        ({"widths": (8, 8, 16, 24, 32, 32)}, "does not divide into heads"),
        ({"latent_channels": 24}, "cannot bring 32 channels to 24"),
    ],
)
def test_impossible_shapes(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        replace(TINY, **changes)


def test_the_smallest_tiles_decode_every_frame() -> None:
    model = tiny(tile_frames=8, tile_size=32)
    clip = video(16, 64, 32)
    assert model.decode(model.encode(clip)).shape == clip.shape


def test_a_recipe_s_tiles_are_refused_in_one_line() -> None:
    given = {
        "kind": "autoencoder",
        "name": "a",
        "run_dir": "r",
        "autoencoder": {"tile_size": 100},
        "data": {"manifest": "m", "buckets": {}},
    }
    with pytest.raises(UserError) as refused:
        read_recipe(given, [], AutoencoderRecipe)
    text = str(refused.value)
    assert "tile_size 100 is not a multiple of 32; the nearest are 96 and 128" in text
    assert "\n" not in text


def test_the_golden_file_is_the_tiny_config() -> None:
    """Should the golden file ever change, this says so before a shape error does."""
    with safe_open(GOLDEN / "dcae_tiny.safetensors", "pt") as file:
        noted = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
        assert file.get_slice("latent").get_shape()[1] == TINY.latent_channels
    assert all(width in TINY.widths for width in noted.get("width_list", []))
