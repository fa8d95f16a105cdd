"""Table 1's row of every autoencoder, each by one command, at tiny random sizes."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vidgen.cli.eval import beside, published
from vidgen.errors import UserError
from vidgen.models.flux_ae.config import FluxAEConfig
from vidgen.models.hunyuan_vae.config import HunyuanVAEConfig
from vidgen.models.video_dcae import VideoDCAE, VideoDCAEConfig, save_weights

VAE = {"latent_channels": 4, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4,
       "layers_per_block": 1}  # fmt: skip
DCAE = VideoDCAEConfig(
    latent_channels=16, widths=(8, 8, 16, 32, 32, 32), encoder_depths=(1,) * 6,
    decoder_depths=(1,) * 6, tile_frames=8, tile_size=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vidgen.data.read.video import write_video

    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("videos")
    for index in range(2):
        frames = np.random.default_rng(index).integers(0, 256, (9, 64, 96, 3), dtype=np.uint8)
        write_video(folder / f"{index}.mp4", frames, fps=8)
    return folder


def hunyuan(folder: Path) -> HunyuanVAEConfig:
    from vidgen.models.hunyuan_vae.model import build

    config = HunyuanVAEConfig(path=str(folder / "hunyuan.safetensors"), **VAE)
    shapes = {name: tuple(t.shape) for name, t in build(config).state_dict().items()}
    return written(config, shapes)


def flux(folder: Path) -> FluxAEConfig:
    from vidgen.models.flux_ae.model import build
    from vidgen.models.flux_ae.weights import published_shapes

    config = FluxAEConfig(path=str(folder / "flux.safetensors"), **VAE)
    return written(config, published_shapes(build(config)))


def written(config: Any, shapes: dict[str, tuple[int, ...]]) -> Any:
    save_file({name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}, config.path)
    return config


def dcae(folder: Path) -> VideoDCAEConfig:
    model = VideoDCAE(DCAE)
    model.init_weights()
    save_weights(model, folder / "dcae.safetensors")
    return replace(DCAE, path=str(folder / "dcae.safetensors"))


@pytest.mark.parametrize(
    ("make", "frames", "compression", "info", "token", "causal"),
    [
        # D_token is D times the square of the patch: 1 on the Video DC-AE's latents, else 2.
        (dcae, 8, "4x32x32", 3 * 4096 / 16, 4096, "no"),
        (hunyuan, 9, "4x8x8", 3 * 256 / 4, 1024, "yes"),
        (flux, 5, "1x8x8", 3 * 64 / 4, 256, "no"),
    ],
)
def test_a_row_of_table_1(
    vidgen: Any,
    recipe: Path,
    videos: Path,
    make: Any,
    frames: int,
    compression: str,
    info: float,
    token: int,
    causal: str,
) -> None:
    if make is not dcae:
        pytest.importorskip("diffusers", reason="the text extra is not installed")
    config = {k: v for k, v in asdict(make(recipe.parent)).items() if k != "tile_overlap"}
    text = recipe.read_text().replace("{kind: block_dct}", json.dumps(config))
    recipe.write_text(text)
    argv = ["eval", "reconstruction", "--ae", recipe, "--videos", videos, "--device", "cpu"]
    status, out, err = vidgen(*argv, "--frames", str(frames), "--size", "64", "--json")
    assert status == 0, err
    row = json.loads(out)
    assert (row["T x H x W"], row["D_info"], row["D_token"]) == (compression, info, token)
    patch = 1 if make is dcae else 2
    assert (row["D"], row["patch"]) == (token // patch**2, patch)
    assert (row["causal"], row["videos"], row["frames"]) == (causal, 2, frames)
    assert 0 < row["PSNR"] < 60
    assert -1 < row["SSIM"] < 1
    assert row["LPIPS"] is None  # no weights given


def test_published_shapes_give_the_reports_ratios(tmp_path: Path) -> None:
    """Its Table 1: 48, 96 and 48 with 256 channels, which a file tells by its last layer."""
    for channels, info in ((128, 96), (256, 48)):
        path = tmp_path / f"{channels}.safetensors"
        save_file({"encoder.project_out.main.op_list.0.conv.bias": torch.zeros(channels)}, path)
        config = published("video_dcae", str(path))
        assert config.latent_channels == channels
        (row,) = beside(
            {"T x H x W": "4x32x32", "channels": channels, "D_info": info, "D": 4096, "patch": 1,
             "D_token": 4096, "causal": "no"}
        )  # fmt: skip
        assert row["autoencoder"] == "report: Video DC-AE"
    assert row["PSNR"] == 30.777
    assert published("hunyuan_vae", "x").latent_channels == 16
    assert published("flux_ae", "x").kind == "flux_ae"


def test_the_default_length_is_one_the_autoencoder_takes(
    vidgen: Any, recipe: Path, videos: Path
) -> None:
    """33 frames where the first stands alone; these videos have 9, and are named for it."""
    pytest.importorskip("diffusers", reason="the text extra is not installed")
    config = json.dumps(asdict(hunyuan(recipe.parent)))
    recipe.write_text(recipe.read_text().replace("{kind: block_dct}", config))
    argv = ("eval", "reconstruction", "--ae", recipe, "--videos", videos, "--device", "cpu")
    status, _, err = vidgen(*argv, "--size", "64")
    assert status == 2
    assert "0.mp4: ends after 9 frames; frame 9 was wanted; take fewer frames with --frames" in err


@pytest.mark.parametrize("broken", [b"", b"no video at all" * 100])
def test_a_broken_video_is_named(vidgen: Any, recipe: Path, tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "broken.mp4").write_bytes(broken)
    argv = ("eval", "reconstruction", "--ae", recipe, "--videos", tmp_path, "--device", "cpu")
    status, _, err = vidgen(*argv)
    assert status == 2
    assert "broken.mp4: " in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("ae", "message"),
    [
        ("vq_vae:x.safetensors", "'vq_vae' is none of video_dcae, hunyuan_vae, flux_ae"),
        ("video_dcae:missing.safetensors", "missing.safetensors"),
        ("nowhere", "is no recipe"),
    ],
)
def test_an_autoencoder_that_is_none(vidgen: Any, videos: Path, ae: str, message: str) -> None:
    status, _, err = vidgen("eval", "reconstruction", "--ae", ae, "--videos", videos)
    assert status == 2
    assert message in err


def test_weights_of_another_width_name_the_first_tensor(
    vidgen: Any, videos: Path, tmp_path: Path
) -> None:
    path = dcae(tmp_path).path
    argv = ("eval", "reconstruction", "--ae", f"video_dcae:{path}", "--videos", videos)
    status, _, err = vidgen(*argv, "--device", "cpu")
    assert status == 2
    assert "'encoder.project_in.conv.weight' is [8, 3, 3, 3, 3]" in err
    assert err.count("\n") == 1


def test_published_refuses_a_kind_without_weights() -> None:
    with pytest.raises(UserError, match="'block_dct' is none of"):
        published("block_dct", "x")
