"""Text to image to video: the picture an image model draws is where the video begins."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vidgen.data.read.video import read_clip, read_metadata
from vidgen.errors import UserError
from vidgen.models.block_dct.config import BlockDCTConfig
from vidgen.models.mmdit import PRESETS, MMDiT, save_weights
from vidgen.recipe.image_model import IMAGE_MODELS, ImageModelConfig, of_file
from vidgen.sample import (
    Pipeline,
    draw_first_frames,
    make_requests,
    sample_to_folder,
    start_from_pictures,
)
from vidgen.sample.first_frame import open_images

PICTURE = ImageModelConfig(resolution="64px")
BLOCK_DCT = BlockDCTConfig()
Make = Callable[..., Pipeline]


@pytest.fixture
def flux(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Image models in FLUX's layout, of the size of the small video model: dev's file, beside
    which schnell's lies."""
    for kind, distilled in (("dev", True), ("schnell", False)):
        config = replace(pipeline.recipe.model, guidance_embed=distilled, cond_embed=False)
        monkeypatch.setitem(PRESETS, f"flux_{kind}", config)
        model = MMDiT(config).requires_grad_(False)
        for param in model.parameters():
            param.copy_(0.2 * torch.randn(param.shape))
        save_weights(model, tmp_path / f"flux1-{kind}.safetensors", "flux")
    return tmp_path / "flux1-dev.safetensors"


def test_a_video_begins_with_the_picture(pipeline: Pipeline, flux: Path, tmp_path: Path) -> None:
    images = pipeline.image_pipeline(flux, {"kind": "block_dct"})
    assert images.source == "flux flux1-dev.safetensors"
    assert images.recipe.flow.shift == "flux"  # FLUX's own rule, whatever the video model's
    requests = make_requests(pipeline, ["a red circle"], samples=2, frames=9, height=32, width=48)
    out = tmp_path / "out"
    drawn = draw_first_frames(images, requests, out, PICTURE)
    assert [r.condition for r in drawn] == ["i2v_head"] * 2
    assert [r.ref for r in drawn] == [(str(out / f"first-000{n}.png"),) for n in range(2)]
    assert drawn == [
        replace(r, condition="i2v_head", ref=d.ref) for r, d in zip(requests, drawn, strict=True)
    ]

    # The picture: the video's prompt, seed and aspect ratio, FLUX's own scale, no frame rate.
    picture = replace(requests[1], frames=1, height=48, width=80, guidance=4.0)
    (expected,) = images.generate([picture])
    assert (read_clip(drawn[1].ref[0], [0]) == expected).all()
    (slower,) = images.generate([replace(picture, fps=12.0)])
    assert (slower == expected).all()
    (other,) = images.generate([replace(picture, guidance=2.0)])
    assert (other != expected).any()
    assert read_metadata(drawn[1].ref[0])["weights"] == images.weights_hash
    assert images.weights_hash != pipeline.weights_hash

    # The videos: those of image to video from that file.
    paths = sample_to_folder(pipeline, drawn, out)
    assert [p.name for p in paths] == ["0000.mp4", "0001.mp4"]
    images.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"condition": "v2v_head"}, "draws the first frame itself: no v2v_head"),
        ({"frames": 1}, "a first frame needs a video after it"),
    ],
)
def test_refusals(
    pipeline: Pipeline, flux: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    images = pipeline.image_pipeline(flux, {"kind": "block_dct"})
    (one,) = make_requests(pipeline, ["a"])
    with pytest.raises(UserError, match=message):
        draw_first_frames(images, [replace(one, **change)], tmp_path / "out", PICTURE)  # type: ignore[arg-type]


def test_weights_that_are_not_flux(pipeline: Pipeline, flux: Path, tmp_path: Path) -> None:
    save_weights(pipeline.model, tmp_path / "video.safetensors", "open-sora")
    with pytest.raises(UserError, match=r"video\.safetensors") as raised:
        pipeline.image_pipeline(tmp_path / "video.safetensors", {"kind": "block_dct"})
    assert "\n" not in str(raised.value)


def test_a_recipe_names_the_image_model_once(
    make_pipeline: Make,
    flux: Path,
    files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It then draws for videos from text alone, and for nothing else; its licence is printed."""
    named = {"preset": "t2i2v", "path": str(flux), "resolution": "64px"}
    pipeline = make_pipeline(sample={"image_model": named | {"autoencoder": {"kind": "block_dct"}}})
    image = pipeline.recipe.sample.image_model
    assert image is not None
    assert (image.kind, image.steps, image.guidance) == ("flux_dev", None, 4.0)
    for shift in ("flux", "public"):
        images = open_images(pipeline, replace(image, shift=shift))  # type: ignore[arg-type]
        assert images.recipe.flow.shift == shift
    rows = [{"prompt": "a"}, {"prompt": "b", "frames": 1}, {"prompt": "c", "ref": [files["left"]]}]
    rows[2]["condition"] = "i2v_tail"
    asked = make_requests(pipeline, rows, height=32, width=32, steps=2)
    found = start_from_pictures(pipeline, image, asked, tmp_path / "out")
    drawn = str(tmp_path / "out" / "first-0000.png")
    assert found == [replace(asked[0], condition="i2v_head", ref=(drawn,)), *asked[1:]]
    assert "FLUX.1 [dev] Non-Commercial License" in capsys.readouterr().err
    assert start_from_pictures(pipeline, image, asked[1:], tmp_path / "out") == asked[1:]
    assert not capsys.readouterr().err  # no picture, no licence
    with pytest.raises(UserError, match="a first frame needs a video after it"):
        start_from_pictures(pipeline, image, asked[1:2], tmp_path / "out", every=True)


def test_schnell_draws_in_four_passes(
    pipeline: Pipeline, flux: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No guidance input, one branch, no shift of the timesteps; its licence is Apache-2.0."""
    path = str(flux.with_name("flux1-schnell.safetensors"))
    preset = IMAGE_MODELS["t2i2v_schnell"]
    image = of_file(path)
    assert image == replace(preset, path=path)
    assert of_file(str(flux)) == replace(IMAGE_MODELS["t2i2v"], path=str(flux))
    (one,) = make_requests(pipeline, ["a"], frames=5, height=32, width=32, steps=2)
    passes: list[int] = []
    opened = pipeline.image_pipeline

    def spy(*args: object) -> Pipeline:
        images = opened(*args)  # type: ignore[arg-type]
        assert images.recipe.flow.shift == 1.0
        images.model.register_forward_hook(lambda *_: passes.append(1))
        return images

    pipeline.image_pipeline = spy  # type: ignore[assignment, method-assign]
    image = replace(image, resolution="64px", autoencoder=BLOCK_DCT)
    (drawn,) = start_from_pictures(pipeline, image, [one], tmp_path / "out", every=True)
    assert len(passes) == 4
    assert read_clip(drawn.ref[0], [0]).std() > 1
    assert "FLUX.1-schnell: Apache-2.0" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["path", "autoencoder"])
def test_files_that_are_not_there_are_named(
    pipeline: Pipeline, flux: Path, tmp_path: Path, missing: str
) -> None:
    image = replace(IMAGE_MODELS["t2i2v"], path=str(flux) if missing != "path" else "/no/flux")
    (one,) = make_requests(pipeline, ["a"], frames=5)
    with pytest.raises(UserError, match=r"no such file, .*add --image-model none") as raised:
        start_from_pictures(pipeline, image, [one], tmp_path / "out")
    assert ("/no/flux" in str(raised.value)) == (missing == "path")


def test_a_model_that_takes_no_image_is_refused(make_pipeline: Make, tmp_path: Path) -> None:
    named = {"model": {"cond_embed": False}, "sample": {"image_model": "t2i2v"}}
    with pytest.raises(UserError, match="draws a first frame, but a model with cond_embed"):
        make_pipeline(**named)
    text_only = make_pipeline(model={"cond_embed": False})
    requests = make_requests(text_only, ["a"], frames=5)
    with pytest.raises(UserError, match="this model takes no image"):
        start_from_pictures(text_only, IMAGE_MODELS["t2i2v"], requests, tmp_path / "out")
