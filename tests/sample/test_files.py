"""Requests from a command's words, and files that say how they were made."""

import argparse
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidgen.cli.main import parse
from vidgen.cli.sample import request as cli_request
from vidgen.data.video import probe, read_clip, read_metadata
from vidgen.errors import UserError
from vidgen.sample import Pipeline, make_requests, write_samples
from vidgen.sample.files import batches, largest_bucket, write_sample


def asked(*argv: str) -> dict[str, Any]:
    """What the command line makes of its arguments."""
    args, _ = parse("sample", ["run", *argv])
    assert isinstance(args, argparse.Namespace)
    wanted = cli_request(args)
    wanted.pop("out", None)
    return wanted


def test_the_recipe_fills_what_was_not_said(pipeline: Pipeline) -> None:
    (one,) = make_requests(pipeline, ["a cat"])
    assert (one.frames, one.height, one.width) == (9, 32, 32)
    sample = pipeline.system.sample
    assert (one.steps, one.guidance, one.guidance_img) == (4, 7.5, 3.0)
    assert (one.fps, one.motion_score) == (sample.fps, sample.motion_score)
    assert (one.prompt, one.seed, one.condition, one.ref) == ("a cat", 0, "t2v", ())


def test_seeds_count_up_for_each_prompt_alone(pipeline: Pipeline) -> None:
    found = make_requests(pipeline, ["a", "b"], samples=2, seed=5)
    assert [(r.prompt, r.seed) for r in found] == [("a", 5), ("a", 6), ("b", 5), ("b", 6)]
    (alone,) = make_requests(pipeline, ["b"], seed=6)
    assert alone == found[3]


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ({"height": 48, "width": 16}, (48, 16)),
        ({"resolution": "64px"}, (64, 64)),
        ({"resolution": "64px", "aspect": "16:9"}, (48, 80)),
        ({"resolution": "64px_ar9:16"}, (80, 48)),
        ({"aspect": "2:1"}, (16, 48)),
    ],
)
def test_sizes(pipeline: Pipeline, said: dict[str, Any], size: tuple[int, int]) -> None:
    (one,) = make_requests(pipeline, ["a"], **said)
    assert (one.height, one.width) == size


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"height": 48}, "height and width go together"),
        ({"width": 48}, "height and width go together"),
        ({"height": 48, "width": 48, "aspect": "1:1"}, "not both"),
        ({"resolution": "big"}, '"big" is no resolution'),
        ({"aspect": "wide"}, '"wide" is no aspect ratio'),
    ],
)
def test_sizes_half_said_are_refused(
    pipeline: Pipeline, said: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_requests(pipeline, ["a"], **said)


def test_frames_of_zero_are_not_the_default(pipeline: Pipeline) -> None:
    (one,) = make_requests(pipeline, ["a"], frames=0)
    with pytest.raises(UserError, match="0 frames"):
        pipeline.generate([one])


def test_the_default_size_is_wide_and_the_largest_trained_on(
    make_pipeline: Callable[..., Pipeline],
) -> None:
    buckets = {
        "256px": {"1": {"batch": 1}, "5-129": {"batch": 1}},
        "768px": {"1": {"batch": 1}, "5-97": {"batch": 1}},
    }
    data = {"manifest": "x", "buckets": buckets}
    assert largest_bucket(make_pipeline(data=data)) == (129, 192, 336)
    buckets["768px"]["101-129"] = {"batch": 1}
    assert largest_bucket(make_pipeline(data=data)) == (129, 576, 1024)


def test_batches_are_neighbours_of_one_shape(pipeline: Pipeline) -> None:
    a = make_requests(pipeline, ["a"], samples=5)
    b = [replace(r, frames=5) for r in a[:1]]
    assert [len(batch) for batch in batches(a, 2)] == [2, 2, 1]
    assert list(batches([*a[:2], *b, *a[2:3]], 4)) == [a[:2], b, a[2:3]]
    assert list(batches([], 4)) == []


@pytest.fixture
def written(pipeline: Pipeline, tmp_path: Path, files: dict[str, str]) -> Path:
    said = {"condition": "i2v_head", "ref": [files["left"]], "negative": "grey: 1; é"}
    requests = make_requests(pipeline, ["a réd circle"], samples=3, seed=11, fps=12.0, **said)
    paths = write_samples(pipeline, requests, tmp_path / "out", batch=2)
    assert [p.name for p in paths] == ["0000.mp4", "0001.mp4", "0002.mp4"]
    return tmp_path / "out"


def test_videos_say_how_they_were_made(written: Path) -> None:
    info = probe(written / "0001.mp4")
    assert (info.num_frames, info.height, info.width, info.fps) == (9, 32, 32, 12.0)
    about = read_metadata(written / "0001.mp4")
    assert about["prompt"] == "a réd circle"
    assert about["seed"] == "12"
    assert about["recipe"] == "small step-000000007"
    assert about["comment"] == "a réd circle (seed 12, small step-000000007, vidgen)"

    summary = json.loads((written / "summary.json").read_text())
    assert summary["source"] == "small step-000000007"
    assert [v["file"] for v in summary["videos"]] == ["0000.mp4", "0001.mp4", "0002.mp4"]
    assert [v["seed"] for v in summary["videos"]] == [11, 12, 13]
    assert all(v["seconds"] > 0 for v in summary["videos"])
    assert sorted(p.name for p in written.iterdir()) == [
        *(f"000{n}.mp4" for n in range(3)),
        "summary.json",
    ]


def test_like_repeats_a_video(written: Path, pipeline: Pipeline) -> None:
    path = written / "0002.mp4"
    (again,) = make_requests(pipeline, **asked("--like", str(path)))
    recorded = json.loads((written / "summary.json").read_text())["videos"][2]
    assert {k: recorded[k] for k in asdict(again)} == json.loads(json.dumps(asdict(again)))
    (copy,) = write_samples(pipeline, [again], written / "again")
    frames = (read_clip(p, range(9)) for p in (path, copy))
    one, two = (x.astype(int) for x in frames)
    # Made alone this time: a level of rounding before the encoder may become a few behind it.
    assert np.abs(one - two).mean() < 0.5
    other = read_clip(written / "0001.mp4", range(9)).astype(int)
    assert np.abs(one - other).mean() > 2

    wanted = asked("--like", str(path), "--steps", "2", "--height", "48", "--width", "64")
    (changed,) = make_requests(pipeline, **wanted)
    assert changed == replace(again, steps=2, height=48, width=64)


def test_files_are_never_written_over(pipeline: Pipeline, tmp_path: Path) -> None:
    requests = make_requests(pipeline, ["a"], frames=5, steps=1)
    (first,) = write_samples(pipeline, requests, tmp_path)
    content = first.read_bytes()
    (second,) = write_samples(pipeline, requests, tmp_path)
    assert (first.name, second.name) == ("0000.mp4", "0001.mp4")
    assert first.read_bytes() == content


def test_one_frame_is_an_image(pipeline: Pipeline, tmp_path: Path) -> None:
    requests = make_requests(pipeline, ["a"], frames=1, steps=2)
    (path,) = write_samples(pipeline, requests, tmp_path)
    assert path.name == "0000.png"
    (expected,) = pipeline.generate(requests)
    assert (read_clip(path, [0]) == expected).all()


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
        write_samples(pipeline, make_requests(pipeline, ["a"]), blocked)
