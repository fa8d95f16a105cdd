"""Requests from a command's words: sizes, seeds, and what each prompt has of its own."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from vidgen.errors import UserError
from vidgen.sample import Pipeline, make_requests
from vidgen.sample.request import largest_bucket


def test_the_recipe_fills_what_was_not_said(pipeline: Pipeline) -> None:
    (one,) = make_requests(pipeline, ["a cat"])
    assert (one.frames, one.height, one.width) == (9, 32, 32)
    sample = pipeline.recipe.sample
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


def test_references_name_the_frames_they_show(pipeline: Pipeline, files: dict[str, str]) -> None:
    def one(*ref: str, **said: Any) -> tuple[str, tuple[str, ...]]:
        (request,) = make_requests(pipeline, ["a"], ref=ref, frames=41, **said)
        assert request == make_requests(pipeline, **json.loads(request.record()))[0]
        return request.condition, request.ref

    left, clip = files["left"], files["clip"]
    assert one(f"{left}@0", f"{clip}@8:41") == ("frames@0+clip@8:41", (left, clip))
    assert one(f"{left}@-1") == ("frames@-1", (left,))
    assert one(left, condition="i2v_tail") == ("i2v_tail", (left,))
    (row,) = make_requests(pipeline, [{"prompt": "a", "ref": [f"{left}@0.5"]}], frames=9)
    assert (row.condition, row.ref) == ("frames@0.5", (left,))
    (tail,) = make_requests(pipeline, ["a"], ref=[left], condition="i2v_tail", frames=9)
    (named,) = make_requests(pipeline, ["a"], ref=[f"{left}@-1"], frames=9)
    assert (pipeline.generate([named])[0] == pipeline.generate([tail])[0]).all()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"ref": ["a.png"]}, "a.png is a reference.*or the frame it shows: a.png@0"),
        ({"ref": ["a.png@0", "b.png"]}, "b.png names no frame, unlike a.png@0: write b.png@0"),
        ({"ref": ["a.png@0"], "condition": "i2v_tail"}, "and so does condition i2v_tail"),
    ],
)
def test_references_half_said_are_refused(
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


def test_a_prompt_has_its_own_settings(pipeline: Pipeline) -> None:
    rows: list[Any] = [
        {"prompt": "a", "negative": "grey", "seed": 40, "frames": 5},
        {"prompt": "b", "resolution": "64px", "aspect": "16:9"},
        "c",
    ]
    found = make_requests(pipeline, rows, samples=2, seed=7, height=48, width=48, negative="blur")
    (common,) = make_requests(pipeline, ["c"], seed=7, height=48, width=48, negative="blur")
    assert found[0] == replace(common, prompt="a", negative="grey", seed=40, frames=5)
    assert found[1] == replace(found[0], seed=41)
    assert found[2] == replace(common, prompt="b", height=48, width=80)
    assert found[4:] == [common, replace(common, seed=8)]


def test_a_reference_needs_a_condition(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match=r"door\.png is a reference, and t2v takes none"):
        make_requests(pipeline, [{"prompt": "a", "ref": ["door.png"]}])
