"""Text to image to video: the picture an image model draws is where the video begins."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vidgen.data.read.video import read_clip, read_metadata
from vidgen.errors import UserError
from vidgen.models.mmdit import PRESETS, MMDiT, save_weights
from vidgen.sample import Pipeline, draw_first_frames, make_requests, sample_to_folder


@pytest.fixture
def flux(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image model in FLUX's layout, of the size of the small video model."""
    config = replace(pipeline.recipe.model, guidance_embed=True, cond_embed=False)
    monkeypatch.setitem(PRESETS, "flux_dev", config)
    model = MMDiT(config).requires_grad_(False)
    for param in model.parameters():
        param.copy_(0.2 * torch.randn(param.shape))
    save_weights(model, tmp_path / "flux1-dev.safetensors", "flux")
    return tmp_path / "flux1-dev.safetensors"


def test_a_video_begins_with_the_picture(pipeline: Pipeline, flux: Path, tmp_path: Path) -> None:
    images = pipeline.image_pipeline(flux, {"kind": "block_dct"})
    assert images.source == "flux flux1-dev.safetensors"
    requests = make_requests(pipeline, ["a red circle"], samples=2, frames=9, height=32, width=48)
    out = tmp_path / "out"
    drawn = draw_first_frames(images, requests, out, resolution="64px")
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
        draw_first_frames(images, [replace(one, **change)], tmp_path / "out")  # type: ignore[arg-type]


def test_weights_that_are_not_flux(pipeline: Pipeline, flux: Path, tmp_path: Path) -> None:
    save_weights(pipeline.model, tmp_path / "video.safetensors", "open-sora")
    with pytest.raises(UserError, match=r"video\.safetensors") as raised:
        pipeline.image_pipeline(tmp_path / "video.safetensors", {"kind": "block_dct"})
    assert "\n" not in str(raised.value)
