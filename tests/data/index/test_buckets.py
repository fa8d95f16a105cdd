import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen.data.config import DataConfig
from vidgen.data.index.buckets import Bucket, BucketTable, assign, frame_interval
from vidgen.data.index.manifest import Manifest
from vidgen.errors import UserError
from vidgen.models.geometry import Geometry

Make = Callable[[list[dict[str, Any]]], Path]


def table(buckets: dict[str, Any], **geometry: Any) -> BucketTable:
    return BucketTable(DataConfig(manifest="m", buckets=buckets), Geometry(**geometry))


def placed(manifest: Path, buckets: BucketTable) -> list[Bucket | None]:
    found = assign(buckets, Manifest.open(manifest), None).bucket_of_row
    return [buckets.buckets[i] if i >= 0 else None for i in found]


def test_a_range_is_every_valid_frame_count() -> None:
    batch = {"batch": 1}
    causal = table({"256px_ar1:1": {1: batch, "5-33": batch}})
    assert [b.frames for b in causal.buckets] == [1, 5, 9, 13, 17, 21, 25, 29, 33]
    other = table({"256px_ar1:1": {"2-16": batch}}, causal=False)
    assert [b.frames for b in other.buckets] == [8, 12, 16]


def test_published_sizes() -> None:
    sizes = {r: {(b.height, b.width) for b in table({r: {1: {"batch": 1}}}).buckets} for r in
             ("256px", "768px")}  # fmt: skip
    assert {(256, 256), (192, 336), (336, 192), (160, 400)} <= sizes["256px"]
    assert {(768, 768), (576, 1024), (672, 880), (496, 1184)} <= sizes["768px"]
    (wide,) = table({"480p_ar16:9": {1: {"batch": 1}}}).buckets
    assert (wide.height, wide.width) == (480, 848)


@pytest.mark.parametrize("multiple", [8, 16, 32])
def test_sides_are_multiples_of_what_is_asked(multiple: int) -> None:
    for b in table({"300px": {1: {"batch": 1}}}, patch=multiple // 8).buckets:
        assert b.height % multiple == b.width % multiple == 0
        assert 0.8 < b.height * b.width / 300**2 < 1.25


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ({}, "data.buckets is empty"),
        ({"256": {1: {"batch": 1}}}, '"256" is no resolution; expected e.g. 256px'),
        ({"0px": {1: {"batch": 1}}}, "is no resolution"),
        ({"256px": {}}, "data.buckets.256px is empty"),
        ({"256px": {"5-": {"batch": 1}}}, '"5-" is no frame count'),
        ({"256px": {16: {"batch": 1}}}, r"4k\+1, the nearest are 13 and 17"),
        ({"256px": {"33-5": {"batch": 1}}}, "33-5 frames"),
        ({"256px": {"5-33": {"batch": 1}, 17: {"batch": 1}}}, "17 frames are listed twice"),
    ],
)
def test_impossible_tables(buckets: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        table(buckets)


@pytest.mark.parametrize(
    ("frames", "nearest"), [(2, "1 and 8"), (4, "1 and 8"), (6, "1 and 8"), (10, "8 and 12")]
)
def test_frames_without_causality(frames: int, nearest: str) -> None:
    """A single latent frame is an image's, so 4 frames are not among the nearest."""
    message = f"takes 1 or a multiple of 4 from 8 on, the nearest are {nearest}$"
    with pytest.raises(UserError, match=message):
        table({"256px": {frames: {"batch": 1}}}, causal=False)


def test_the_highest_resolution_a_clip_fills_and_the_most_frames(make_manifest: Make) -> None:
    buckets = table(
        {
            "64px": {1: {"batch": 1}, "5-33": {"batch": 1}},
            "128px": {17: {"batch": 1}},
        }
    )
    rows = [
        {"height": 128, "width": 128, "num_frames": 40},
        {"height": 128, "width": 128, "num_frames": 12},  # too short for 128px
        {"height": 60, "width": 60, "num_frames": 40},  # 0.88 of 64px's area: scaled up
        {"height": 50, "width": 50, "num_frames": 40},  # 0.61: not
        {"height": 512, "width": 512, "num_frames": 1},
        {"height": 64, "width": 64, "num_frames": 4},
        {"height": 360, "width": 640, "num_frames": 17},
        {"height": 640, "width": 360, "num_frames": 17},
    ]
    path = make_manifest(rows)
    assert placed(path, buckets) == [
        Bucket("128px", 17, 128, 128),
        Bucket("64px", 9, 64, 64),
        Bucket("64px", 33, 64, 64),
        None,
        Bucket("64px", 1, 64, 64),
        None,
        Bucket("128px", 17, 96, 176),
        Bucket("128px", 17, 176, 96),
    ]
    assert assign(buckets, Manifest.open(path), None).left_out == {
        "smaller than every resolution": 1,
        "fewer frames than every bucket": 1,
    }


def test_keep_passes_clips_down_then_out(make_manifest: Make) -> None:
    buckets = table(
        {"64px": {5: {"batch": 1, "keep": 0.4}}, "32px": {5: {"batch": 1, "keep": 0.6}}}
    )
    manifest = Manifest.open(make_manifest([{"height": 64, "width": 64}] * 3))
    chances = np.array([[0.39, 0.9], [0.4, 0.59], [0.4, 0.6]])
    result = assign(buckets, manifest, chances)
    names = [buckets.buckets[i].resolution if i >= 0 else None for i in result.bucket_of_row]
    assert names == ["64px", "32px", None]
    assert result.left_out == {"left out by keep": 1}


def test_image_without_a_bucket_says_so(make_manifest: Make) -> None:
    manifest = Manifest.open(make_manifest([{"num_frames": 1}]))
    result = assign(table({"32px": {5: {"batch": 1}}}), manifest, None)
    assert result.left_out == {"an image, and no bucket has 1 frame": 1}


@given(fps=st.floats(1, 240), fps_max=st.floats(1, 60))
def test_interval_brings_the_rate_down_and_no_further(fps: float, fps_max: float) -> None:
    interval = int(frame_interval(np.array(fps), fps_max))
    assert fps / interval <= fps_max * 1.002
    assert interval == 1 or fps / (interval - 1) > fps_max


def test_unknown_rate_is_read_whole() -> None:
    fps = np.array([math.nan, math.inf, 0.0, 23.976, 24.0, 24.01, 30.0, 60.0])
    assert frame_interval(fps, 24.0).tolist() == [1, 1, 1, 1, 1, 1, 2, 3]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_no_clip_is_asked_for_frames_it_lacks(data: st.DataObject) -> None:
    rows = data.draw(
        st.lists(
            st.tuples(st.integers(1, 200), st.integers(16, 200), st.integers(16, 200),
                      st.floats(1, 120)), min_size=1, max_size=20)
    )  # fmt: skip

    class Rows:
        num_frames, height, width = (
            np.array(c, np.int32) for c in list(zip(*rows, strict=True))[:3]
        )
        fps = np.array([r[3] for r in rows])

        def __len__(self) -> int:
            return len(rows)

    buckets = table(
        {"64px": {1: {"batch": 1}, "5-65": {"batch": 1}}, "128px": {"33": {"batch": 1}}}
    )
    result = assign(buckets, Rows(), None)  # type: ignore[arg-type]
    assert sum(result.left_out.values()) == (result.bucket_of_row < 0).sum()
    for row, number in zip(rows, result.bucket_of_row, strict=True):
        if number >= 0:
            bucket = buckets.buckets[number]
            interval = int(frame_interval(np.array(row[3]), 24.0))
            assert (bucket.frames - 1) * interval + 1 <= row[0]
            assert (bucket.frames == 1) == (row[0] == 1)
