"""Requests from a command's words, and files that say how they were made."""

import argparse
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from vidgen.cli.main import parse
from vidgen.cli.sample import request as cli_request
from vidgen.data.read.video import probe, read_clip, read_metadata
from vidgen.errors import UserError
from vidgen.sample import Pipeline, make_requests, sample_to_folder
from vidgen.sample.output import write_sample


def asked(*argv: str) -> dict[str, Any]:
    """What the command line makes of its arguments."""
    args, _ = parse("sample", ["run", *argv])
    assert isinstance(args, argparse.Namespace)
    return cli_request(args)


@pytest.fixture
def written(pipeline: Pipeline, tmp_path: Path, files: dict[str, str]) -> Path:
    said = {"condition": "i2v_head", "ref": [files["left"]], "negative": "grey: 1; é"}
    requests = make_requests(pipeline, ["a réd circle"], samples=3, seed=11, fps=12.0, **said)
    paths = sample_to_folder(pipeline, requests, tmp_path / "out")
    assert [p.name for p in paths] == ["0000.mp4", "0001.mp4", "0002.mp4"]
    return tmp_path / "out"


def test_videos_say_how_they_were_made(written: Path, pipeline: Pipeline) -> None:
    info = probe(written / "0001.mp4")
    assert (info.num_frames, info.height, info.width, info.fps) == (9, 32, 32, 12.0)
    about = read_metadata(written / "0001.mp4")
    assert about["prompt"] == "a réd circle"
    assert about["seed"] == "12"
    assert about["recipe"] == "small step-000000007"
    assert about["comment"] == "a réd circle (seed 12, small step-000000007, vidgen)"
    assert about["weights"] == pipeline.weights_hash

    summary = json.loads((written / "summary-0000.json").read_text())
    assert summary["source"] == "small step-000000007"
    assert [v["file"] for v in summary["videos"]] == ["0000.mp4", "0001.mp4", "0002.mp4"]
    assert [v["seed"] for v in summary["videos"]] == [11, 12, 13]
    assert summary["weights"] == pipeline.weights_hash
    assert "text" in summary["seconds"]
    for video in summary["videos"]:
        assert set(video["seconds"]) == {
            *("references", "load", "denoise", "decode", "write", "other")
        }
        assert video["seconds"]["denoise"] > 0
        # Steps 0 and 2 run all branches; in 1 and 3 the image scale is 1.
        assert (video["passes"], video["passes_unplanned"]) == (3 + 2 + 3 + 2, 12)
    assert sorted(p.name for p in written.iterdir()) == [
        *(f"000{n}.mp4" for n in range(3)),
        "summary-0000.json",
    ]


def test_like_repeats_a_video(written: Path, pipeline: Pipeline) -> None:
    path = written / "0002.mp4"
    (again,) = make_requests(pipeline, **asked("--like", str(path)))
    recorded = json.loads((written / "summary-0000.json").read_text())["videos"][2]
    assert {k: recorded[k] for k in asdict(again)} == json.loads(json.dumps(asdict(again)))
    (copy,) = sample_to_folder(pipeline, [again], written / "again")
    assert copy.read_bytes() == path.read_bytes()  # the same bits, alone this time
    assert (written / "0001.mp4").read_bytes() != path.read_bytes()

    wanted = asked("--like", str(path), "--steps", "2", "--height", "48", "--width", "64")
    (changed,) = make_requests(pipeline, **wanted)
    assert changed == replace(again, steps=2, height=48, width=64)


def test_files_are_never_written_over(pipeline: Pipeline, tmp_path: Path) -> None:
    requests = make_requests(pipeline, ["a"], frames=5, steps=1)
    (first,) = sample_to_folder(pipeline, requests, tmp_path)
    content = first.read_bytes()
    summary = (tmp_path / "summary-0000.json").read_bytes()
    (second,) = sample_to_folder(pipeline, requests, tmp_path)
    assert (first.name, second.name) == ("0000.mp4", "0001.mp4")
    assert first.read_bytes() == content
    assert (tmp_path / "summary-0000.json").read_bytes() == summary
    assert (
        json.loads((tmp_path / "summary-0001.json").read_text())["videos"][0]["file"] == "0001.mp4"
    )


def test_one_frame_is_an_image(pipeline: Pipeline, tmp_path: Path) -> None:
    requests = make_requests(pipeline, ["a réd cat 猫"], frames=1, steps=2)
    (path,) = sample_to_folder(pipeline, requests, tmp_path)
    assert path.name == "0000.png"
    (expected,) = pipeline.generate(requests)
    assert (read_clip(path, [0]) == expected).all()
    about = read_metadata(path)
    assert (about["prompt"], about["weights"]) == ("a réd cat 猫", pipeline.weights_hash)
    assert make_requests(pipeline, **asked("--like", str(path))) == requests


def test_a_preview_is_there_while_the_video_forms(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    requests = make_requests(pipeline, ["a"], frames=5)
    decode = pipeline.autoencoder.decode

    def look_and_decode(latents: Tensor) -> Tensor:
        seen.extend(tmp_path.glob("*.preview.png"))
        return decode(latents)

    monkeypatch.setattr(pipeline.autoencoder, "decode", look_and_decode)
    sample_to_folder(pipeline, requests, tmp_path, preview=True)
    assert [path.name for path in seen] == ["0000.preview.png"]
    assert not list(tmp_path.glob("*.preview.png"))


@pytest.mark.parametrize("crf", [-1, 52])
def test_a_crf_that_h264_does_not_know(pipeline: Pipeline, tmp_path: Path, crf: int) -> None:
    with pytest.raises(UserError, match=rf"crf {crf}: expected 0 \(lossless\) to 51"):
        sample_to_folder(pipeline, make_requests(pipeline, ["a"]), tmp_path, crf=crf)


def test_what_cannot_be_made_is_refused_before_the_first_video(
    pipeline: Pipeline, tmp_path: Path, files: dict[str, str]
) -> None:
    pipeline.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    bad = {"prompt": "b", "condition": "v2v_head", "ref": [files["left"]], "frames": 37}
    with pytest.raises(UserError, match=r"left.png has 1 frame\(s\); this condition needs 33"):
        sample_to_folder(pipeline, make_requests(pipeline, ["a", bad]), tmp_path)
    assert not list(tmp_path.iterdir())


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk, the write that goes beyond fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("frames", "name"), [(9, "a.mp4"), (1, "a.png")])
def test_a_full_disk_leaves_no_partial_file(
    pipeline: Pipeline, tmp_path: Path, frames: int, name: str
) -> None:
    (one,) = make_requests(pipeline, ["a"], frames=frames, height=64, width=64)
    noise = np.random.default_rng(0).integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8)
    path = tmp_path / name
    with (
        pytest.raises(UserError, match=f"{name} cannot be written: ") as raised,
        files_of_at_most(3000),
    ):
        write_sample(path, noise, one, "small")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    write_sample(path, noise, one, "small")
    assert path.is_file()


def test_a_place_that_cannot_hold_files(pipeline: Pipeline, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    pipeline.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(UserError, match="file cannot hold the videos: File exists"):
        sample_to_folder(pipeline, make_requests(pipeline, ["a"]), blocked)
