"""The judge on scenes whose truth is known, and on damage that one measure each must catch."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vidgen.data.synthetic.scene_judge import judge, judge_hash
from vidgen.data.synthetic.scene_judge.features import NAMES, features
from vidgen.data.synthetic.scene_judge.picture import agreement
from vidgen.data.synthetic.scenes import Body, Scene, place, render
from vidgen.data.synthetic.scenes.dataset import take

TAKES = 40


@pytest.fixture(scope="module")
def truths():
    takes = [take(11, "valid", 96, 16, n) for n in range(TAKES)]
    return [(t.layout, t.video()) for t in takes]


def shares(pairs):
    found = defaultdict(list)
    for scene, video in pairs:
        for name, value in judge(video, scene).right.items():
            found[name].append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def test_rendered_scenes_are_read_as_they_are(truths):
    right = shares((layout.scene, video) for layout, video in truths)
    assert set(right) == {
        *("count", "colour", "shape", "size", "texture", "motion", "speed", "camera", "order")
    }
    assert all(value >= 0.98 for value in right.values()), right
    assert np.mean(list(right.values())) >= 0.99
    verdicts = [judge(video, layout.scene) for layout, video in truths[:8]]
    assert max(v.ghosting for v in verdicts) < 0.002
    assert np.mean([v.path_error for v in verdicts]) < 1.0


@pytest.mark.parametrize(("side", "frames"), [(96, 32), (128, 48)])
def test_longer_and_larger_videos_are_read_too(side, frames):
    takes = [take(12, "valid", side, frames, n) for n in range(6)]
    right = shares((t.layout.scene, t.video()) for t in takes)
    assert all(value >= 0.9 for value in right.values()), right


def test_another_scene_is_not_taken_for_the_one_asked(truths):
    scenes = [layout.scene for layout, _ in truths]
    right = shares(
        (scene, video) for scene, (_, video) in zip(scenes[1:] + scenes[:1], truths, strict=True)
    )
    assert right["colour"] < 0.5
    assert right["motion"] < 0.25


def single(**what):
    body = Body("red", "square", "large", "plain", "moves", "left", "quickly", radius=19.5)
    body = replace(body, **what)
    return Scene((body,))


def drawn(scene, seed=0, frames=16):
    return render(place(scene, frames, 96, np.random.default_rng(seed)))


@pytest.mark.parametrize(
    ("attribute", "changed"),
    [
        ("colour", {"colour": "green"}),
        ("shape", {"shape": "circle"}),
        ("size", {"size": "small", "radius": 12.5}),
        ("texture", {"texture": "striped"}),
        ("motion", {"heading": "up"}),
        ("motion", {"motion": "hops"}),
        ("speed", {"speed": "slowly"}),
    ],
)
def test_a_swapped_attribute_is_caught_by_its_own_measure(attribute, changed):
    right = judge(drawn(single(**changed)), single()).right
    assert right[attribute] == 0
    if attribute != "colour":  # an object that is not there has nothing right
        others = {name for name in ("colour", "shape", "size", "texture", "motion")} - {attribute}
        assert all(right[name] == 1 for name in others), right


def test_frozen_motion_is_caught():
    video = drawn(single())
    verdict = judge(np.repeat(video[:1], 16, axis=0), single())
    assert verdict.right["motion"] == 0
    assert verdict.path_error > 3


def test_a_dropped_and_an_added_object_are_caught():
    two = Scene(
        (single().bodies[0], Body("blue", "circle", "small", "plain", "stays", radius=12.5))
    )
    assert judge(drawn(two), two).right["count"] == 1
    assert judge(drawn(single()), two).right["count"] == 0
    assert judge(drawn(two), single()).right["count"] == 0


def test_a_second_object_of_the_same_colour_is_counted():
    video = drawn(single(motion="stays", heading=None, speed=None, size="small", radius=12.5))
    twice = np.maximum(video, np.roll(video, 48, axis=2))
    assert judge(twice, single()).count == 2


def test_ghosts_raise_ghosting_and_nothing_else():
    scene = single()
    video, other = drawn(scene, 0).astype(float), drawn(scene, 5).astype(float)
    ghost = (0.86 * video + 0.14 * other).astype(np.uint8)
    clean, haunted = judge(video.astype(np.uint8), scene), judge(ghost, scene)
    assert clean.ghosting < 0.001
    assert haunted.ghosting > 0.01
    assert haunted.right["colour"] == 1


def test_blur_lowers_sharpness():
    scene = single()
    video = drawn(scene).astype(np.float32)
    blurred = video.copy()
    for axis in (1, 2):
        blurred = sum(np.roll(blurred, k, axis=axis) for k in range(-3, 4)) / 7
    sharp, soft = judge(video.astype(np.uint8), scene), judge(blurred.astype(np.uint8), scene)
    assert soft.sharpness < 0.6 * sharp.sharpness


def test_flicker_of_the_background_is_caught():
    scene = single()
    video = drawn(scene).astype(int)
    shaken = np.clip(video + 6 * (np.arange(16) % 2)[:, None, None, None], 0, 255).astype(np.uint8)
    assert judge(shaken, scene).flicker > 5 * judge(video.astype(np.uint8), scene).flicker


def test_the_camera_and_the_order_of_objects_are_read():
    panned = replace(single(), camera="right")
    assert judge(drawn(panned), panned).right["camera"] == 1
    assert judge(drawn(panned), single()).right["camera"] == 0
    assert judge(drawn(panned)[::-1], panned).right["camera"] == 0
    mover = Body("red", "circle", "small", "plain", "moves", "left", "quickly", radius=12.5)
    other = Body("blue", "square", "large", "plain", "stays", radius=19.5)
    front = Scene((mover, other), "in front of")
    assert judge(drawn(front), front).right["order"] == 1
    assert judge(drawn(front), replace(front, relation="behind")).right["order"] == 0


def test_a_video_without_objects_or_of_noise_has_nothing_right():
    scene = single()
    noise = np.random.default_rng(0).integers(0, 255, (16, 96, 96, 3), dtype=np.uint8)
    for video in (np.full((16, 96, 96, 3), 90, np.uint8), noise):
        right = judge(video, scene).right
        assert right["shape"] == right["motion"] == right["size"] == 0


def test_agreement_with_given_frames():
    video = drawn(single())
    assert agreement(video[:1], video[:1]) == 100
    assert agreement(video[:1], video[8:9]) < 25


def test_features_are_finite_and_of_about_unit_size(truths):
    rows = np.array([features(video) for _, video in truths[:20]])
    assert rows.shape == (20, len(NAMES))
    assert np.isfinite(rows).all()
    assert np.abs(rows).mean() < 3
    assert np.isfinite(features(np.zeros((16, 96, 96, 3), np.uint8))).all()


def test_the_judge_is_the_one_that_is_frozen():
    """A change to its source makes every kept figure void: make them again, then the hash here."""
    text = (Path(__file__).resolve().parents[3] / "docs" / "proving.md").read_text("utf-8")
    assert f"`{judge_hash()}`" in text
