"""The shipped model: it is whole, small, and draws what it is asked for."""

import hashlib
import json

import numpy as np
import pytest

from vidgen import demo
from vidgen.data.synthetic.scene_judge import segment
from vidgen.errors import UserError
from vidgen.sample import Pipeline, make_requests
from vidgen.sample.demo import is_demo, open_demo

COLOURS = ("red", "yellow", "green", "blue", "pink")


@pytest.fixture(scope="module")
def pipeline():
    return open_demo("cpu")


def test_the_files_are_those_of_the_record_and_small():
    record = json.loads((demo.FOLDER / "record.json").read_text())
    for name, digest in record["weights"].items():
        assert hashlib.sha256((demo.FOLDER / name).read_bytes()).hexdigest() == digest
    total = sum(path.stat().st_size for path in demo.FOLDER.rglob("*") if path.is_file())
    assert total <= 25e6
    assert record["reconstruction_psnr_db"] >= 32
    assert set(record["data"]) == {"valid", "autoencoder", "fine", "clear"}


def test_the_autoencoder_reconstructs_held_out_clips_without_visible_blocks(pipeline):
    from vidgen.train.demo import clips, reconstruction_psnr

    model = pipeline.autoencoder
    assert reconstruction_psnr(model, seed=7, count=4) >= 32
    video = clips(7, 96, 2, part="valid")
    error = (model(video)[0].detach() - video).abs().mean(dim=(0, 1, 2, 3))  # by column
    at_edge = error[8::8].mean() + error[7:-1:8].mean()
    assert float(at_edge / 2 / error.mean()) < 1.3  # no worse where blocks meet


def test_colours_are_as_asked(pipeline):
    prompts = [
        f"one object: a large plain {c} circle stays in place; the camera stays still"
        for c in COLOURS
    ]
    requests = [
        make_requests(pipeline, [p], seed=n, frames=16, height=96, width=96, steps=12)[0]
        for n, p in enumerate(prompts)
    ]
    videos = pipeline.generate(requests, together=True)
    assert all(v.shape == (16, 96, 96, 3) for v in videos)
    right = 0
    for colour, video in zip(COLOURS, videos, strict=True):
        masks = segment.masks(video.astype(np.float32) / 255)
        right += max(masks, key=lambda name: int(masks[name].sum())) == colour
    assert right >= 4


def test_a_request_gives_the_same_video_again(pipeline):
    request = make_requests(
        pipeline, ["a red circle"], seed=3, frames=16, height=96, width=96, steps=2
    )
    first, again = (pipeline.generate(request)[0] for _ in range(2))
    assert (first == again).all()


def test_a_folder_named_demo_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_demo("demo")
    (tmp_path / "demo").mkdir()
    assert not is_demo("demo")


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(UserError, match=r"generator\.safetensors is missing"):
        open_demo("cpu", folder=tmp_path)


def test_a_request_without_a_size_has_the_usual_one(pipeline):
    (request,) = make_requests(pipeline, ["a red circle"])
    assert (request.frames, request.height, request.width) == (16, 96, 96)


def test_the_pipeline_is_an_ordinary_one(pipeline):
    assert isinstance(pipeline, Pipeline)
    assert pipeline.recipe.name == "demo"
