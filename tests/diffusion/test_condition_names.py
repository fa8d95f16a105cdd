"""Spelled-out conditions, and what is refused with the forms there are."""

import pytest

from vidgen.diffusion.condition_names import (
    NAMED,
    AnyFrames,
    ClipAt,
    EveryFrame,
    FrameAt,
    check_condition,
    condition_of_places,
    gives_images,
    parse_condition,
    split_reference,
)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("frames@0,0.5,-1", (FrameAt(0), FrameAt(0.5), FrameAt(-1))),
        ("every@8", (EveryFrame(8),)),
        ("clip@40:73", (ClipAt(40, 73),)),
        ("clip@-33:", (ClipAt(-33, None),)),
        ("clip@:33", (ClipAt(0, 33),)),
        ("any_frames", (AnyFrames(),)),
        ("i2v_head+clip@40:73", (FrameAt(0), ClipAt(40, 73))),
        *NAMED.items(),
    ],
)
def test_names(name: str, parts: object) -> None:
    assert parse_condition(name) == parts
    assert check_condition(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "i2v", "frames@", "frames@x", "frames@1.5", "frames@0,,1", "frames@0+"),
        *("every", "every@0", "every@-1", "clip@3", "clip@:", "clip@a:b"),
        *("t2v+i2v_head", "any_frames@3"),
    ],
)
def test_what_is_no_name_is_told_the_forms(name: str) -> None:
    with pytest.raises(ValueError, match=r"is no condition.*i2v_middle.*frames@0,0.5,-1") as raised:
        check_condition(name)
    assert "\n" not in str(raised.value)


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'i2v_head'\?"):
        check_condition("i2v_haed")
    with pytest.raises(ValueError, match="names a place twice"):
        check_condition("frames@3,3")


def test_images_and_clips() -> None:
    images = {name: gives_images(name) for name in ("t2v", "i2v_loop", "every@8", "any_frames")}
    assert images == {"t2v": False, "i2v_loop": True, "every@8": True, "any_frames": True}
    clips = ("v2v_tail", "v2v_head_easy", "clip@0:5", "i2v_tail+clip@0:5")
    assert not any(map(gives_images, clips))


def test_files_that_name_their_place() -> None:
    asked = ("door.png@0", "end.png@-1", "clip.mp4@40:73", "mid.png@0.5", "me@home.png", "a.png")
    assert [split_reference(text) for text in asked] == [
        ("door.png", "0"),
        ("end.png", "-1"),
        ("clip.mp4", "40:73"),
        ("mid.png", "0.5"),
        ("me@home.png", None),
        ("a.png", None),
    ]
    assert check_condition(condition_of_places(["0", "40:73"])) == "frames@0+clip@40:73"
