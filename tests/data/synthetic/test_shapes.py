"""Synthetic clips show what their captions say, and hold out combinations, never words."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from vidgen.data.index.manifest import Manifest
from vidgen.data.read.video import read_clip
from vidgen.data.synthetic.shapes import (
    COLOURS,
    DIRECTIONS,
    HELD_OUT,
    SCENES,
    SHAPES,
    TRAINED,
    Scene,
    outline,
    render,
    write_dataset,
)


def test_scenes_are_every_combination_once() -> None:
    assert len(SCENES) == len(set(SCENES)) == 4 * 3 * 4
    captions = {scene.caption for scene in SCENES}
    assert len(captions) == 48
    assert Scene("red", "circle", "left").caption == "a red circle moving left"


def test_what_is_held_out_is_known_word_by_word() -> None:
    assert set(HELD_OUT) | set(TRAINED) == set(SCENES)
    assert not set(HELD_OUT) & set(TRAINED)
    assert 5 <= len(HELD_OUT) <= 10
    for held in (HELD_OUT, TRAINED):
        assert {s.colour for s in held} == set(COLOURS)
        assert {s.shape for s in held} == set(SHAPES)
        assert {s.direction for s in held} == set(DIRECTIONS)
    # Each pair of words as well: what is new is the three together.
    trained = {(s.colour, s.shape, s.direction) for s in TRAINED}
    for a, b in ((0, 1), (0, 2), (1, 2)):
        pairs = {(words[a], words[b]) for words in trained}
        wanted = set(product(*((COLOURS, SHAPES, DIRECTIONS)[i] for i in (a, b))))
        assert pairs == wanted


@pytest.mark.parametrize("scene", SCENES[::5], ids=lambda s: s.caption)
def test_a_clip_shows_its_caption(scene: Scene) -> None:
    video = render(scene, 17, 64, np.random.default_rng(1))
    assert video.shape == (17, 64, 64, 3)
    assert video.dtype == np.uint8
    inside = (video == COLOURS[scene.colour]).all(-1)
    assert inside.any(axis=(1, 2)).all()
    assert not inside[:, [0, -1]].any()  # never touches the edge
    assert not inside[:, :, [0, -1]].any()
    centres = np.array([[np.nonzero(m)[1].mean(), np.nonzero(m)[0].mean()] for m in inside])
    moved = centres[-1] - centres[0]
    towards = np.array(DIRECTIONS[scene.direction])
    assert moved @ towards > 0.35 * 64
    assert abs(moved @ towards[::-1]) < 1
    assert ((np.diff(centres, axis=0) @ towards) > 0).all()


def test_clips_differ_and_repeat_by_their_generator() -> None:
    scene = SCENES[0]
    one, two, other = (render(scene, 5, 64, np.random.default_rng(n)) for n in (1, 1, 2))
    assert (one == two).all()
    assert (one != other).any()


@pytest.mark.parametrize(("shape", "area"), [("circle", np.pi), ("square", 4.0), ("triangle", 2.0)])
def test_outlines_have_the_area_of_their_shape(shape: str, area: float) -> None:
    y, x = np.mgrid[-40:41, -40:41]
    assert outline(shape, x, y, 30).sum() == pytest.approx(area * 30**2, rel=0.02)


def test_a_triangle_stands_on_its_base() -> None:
    y, x = np.mgrid[-40:41, -40:41]
    rows = outline("triangle", x, y, 30).sum(1)
    assert rows[40 - 29] < 3
    assert rows[40 + 29] > 55
    assert (np.diff(rows[40 - 29 : 40 + 30]) >= 0).all()


def test_a_data_set_is_written_and_repeats(tmp_path: Path) -> None:
    done: list[None] = []
    scenes = TRAINED[:2]
    clips = ((5, 2), (9, 1))
    manifest = write_dataset(
        tmp_path / "a", scenes=scenes, clips=clips, side=32, progress=lambda: done.append(None)
    )
    rows = Manifest.open(manifest, check="all")
    assert len(rows) == len(done) == 6
    assert {rows[i].text for i in range(6)} == {scene.caption for scene in scenes}
    assert sorted(rows.num_frames) == [5, 5, 5, 5, 9, 9]
    # A clip depends on its own number, not on what is written beside it.
    write_dataset(tmp_path / "b", scenes=scenes[1:], clips=((5, 1),), side=32)
    (alone,) = (tmp_path / "b").glob("*.mp4")
    one, two = (read_clip(tmp_path / x / alone.name, range(5)) for x in "ab")
    assert (one == two).all()
    other = write_dataset(tmp_path / "c", scenes=scenes[1:], clips=((5, 1),), side=32, seed=1)
    assert (read_clip(other.parent / alone.name, range(5)) != one).any()
