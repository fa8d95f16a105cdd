"""The world of scenes: a pure function of its seed, in which captions and pixels agree."""

import json
from collections import Counter

import numpy as np
import pytest

from vidgen.data.synthetic.scenes import Body, Scene, caption, draw_scene, held_out, place, render
from vidgen.data.synthetic.scenes.caption import MOST_WORDS
from vidgen.data.synthetic.scenes.dataset import Kind, motion_score, take, write_scenes
from vidgen.data.synthetic.scenes.draw import HELD_OUT
from vidgen.data.synthetic.scenes.place import edges
from vidgen.data.synthetic.scenes.world import COLOURS, FINE, SHAPES, TEXTURES

MOVER = Body("red", "circle", "small", "striped", "moves", "left", "quickly", radius=12.5)
OTHER = Body("blue", "square", "large", "plain", "stays", radius=19.5)


def test_a_take_depends_on_its_seed_and_number_alone():
    first, again = (take(3, "train", 96, 16, 5) for _ in range(2))
    assert first.caption == again.caption
    assert (first.video() == again.video()).all()
    assert take(3, "train", 96, 16, 6).caption != first.caption
    assert (take(4, "train", 96, 16, 5).video() != first.video()).any()
    assert (take(3, "valid", 96, 16, 5).video() != first.video()).any()


def test_one_caption_has_many_videos():
    scene = Scene((MOVER,))
    starts = np.array(
        [place(scene, 16, 96, np.random.default_rng(n)).centre_NT2[0, 0] for n in range(40)]
    )
    assert (starts.std(0) > 10).all()  # averages of them are ghosts


def test_captions_say_relations_counts_and_the_camera():
    scene = Scene((MOVER, OTHER), "in front of", "left")
    assert caption(scene) == (
        "two objects: a small striped red circle moves left quickly in front of a large plain blue "
        "square that stays in place; the camera pans left"
    )
    assert caption(scene, moving=False) == (
        "two objects: a small striped red circle, a large plain blue square"
    )


def test_a_short_caption_leaves_words_out_and_never_contradicts():
    scene = Scene((MOVER, OTHER), "behind")
    whole = set(caption(scene).replace(",", "").replace(";", "").replace(":", "").split())
    texts = {caption(scene, rng=np.random.default_rng(n)) for n in range(20)}
    assert len(texts) > 5
    for text in texts:
        assert {"red", "circle", "blue", "square", "behind"} <= set(text.split())
        assert set(text.replace(",", "").replace(";", "").replace(":", "").split()) <= whole


def test_held_out_combinations_are_never_trained_but_each_of_their_pairs_is():
    trained = [draw_scene(np.random.default_rng([0, n])) for n in range(400)]
    assert not any(held_out(scene) for scene in trained)
    assert all(held_out(draw_scene(np.random.default_rng([1, n]), held=True)) for n in range(50))
    looks = {(b.colour, b.shape, b.texture) for scene in trained for b in scene.bodies}
    assert len(looks) == len(COLOURS) * len(SHAPES) * len(TEXTURES) - len(HELD_OUT)
    for colour, shape, texture in HELD_OUT:
        assert any((c, s) == (colour, shape) for c, s, _ in looks)
        assert any((c, t) == (colour, texture) for c, _, t in looks)
        assert any((s, t) == (shape, texture) for _, s, t in looks)


def test_scenes_have_one_to_three_objects_of_different_colours():
    counts = Counter(len(draw_scene(np.random.default_rng([2, n])).bodies) for n in range(300))
    assert set(counts) == {1, 2, 3}
    with pytest.raises(ValueError, match="differ in colour"):
        Scene((MOVER, MOVER))
    with pytest.raises(ValueError, match="two objects"):
        Scene((MOVER,), "behind")


@pytest.mark.parametrize("frames", [16, 32])
def test_objects_stay_in_the_picture(frames):
    for number in range(40):
        layout = take(5, "train", 96, frames, number).layout
        for body, centres in zip(layout.scene.bodies, layout.centre_NT2, strict=True):
            low, high = edges(body, 96)
            moved = body.motion != "stays"
            assert (centres >= low - 1e-6 - (15 if moved else 0)).all()
            assert (centres <= high + 1e-6 + (15 if moved else 0)).all()


@pytest.mark.parametrize("relation", ["in front of", "behind"])
def test_a_relation_decides_which_colour_covers_the_other(relation):
    layout = place(Scene((MOVER, OTHER), relation), 16, 96, np.random.default_rng(0))
    apart = np.hypot(*(layout.centre_NT2[0] - layout.centre_NT2[1]).T)
    frame = int(apart.argmin())
    assert apart[frame] < 8  # they do cross
    x, y = layout.centre_NT2[0, frame].astype(int)
    red, _, blue = render(layout)[frame, y, x].astype(int)
    assert (red > blue) == (relation == "in front of")


def test_a_pan_moves_the_background_the_other_way():
    still = Body("red", "circle", "small", "plain", "stays", radius=12.5)
    layout = place(Scene((still,), None, "right"), 16, 96, np.random.default_rng(1))
    video = render(layout).astype(int)
    edge = video[:, -10:, :]  # rows below most objects
    assert np.abs(edge[4, :, :-6] - edge[0, :, 6:]).mean() < np.abs(edge[4] - edge[0]).mean() / 2


def test_a_data_set_is_the_same_every_time_and_measures_motion(tmp_path):
    kinds = (Kind(32, 1, 2), Kind(64, 8, 3))
    for name in ("a", "b"):
        write_scenes(tmp_path / name, kinds, seed=9, setting=FINE)
    facts = [json.loads((tmp_path / n / "dataset.json").read_text()) for n in ("a", "b")]
    assert facts[0] == facts[1]
    assert facts[0]["setting"] == "fine"
    pytest.importorskip("pyarrow")
    from vidgen.data.index.manifest import Manifest

    manifest = Manifest.open(tmp_path / "a" / "manifest.parquet", check="all")
    assert manifest.num_frames.tolist() == [1, 1, 8, 8, 8]
    assert manifest[0].motion is None
    video = take(9, "train", 64, 8, 0, FINE).video()
    assert manifest[2].motion == motion_score(video)
    assert motion_score(np.repeat(video[:1], 3, axis=0)) == 0.0


def test_no_caption_is_longer_than_the_text_encoder_of_the_demo_takes():
    longest = max(
        len(caption(draw_scene(np.random.default_rng([3, n]), count=3)).split()) for n in range(200)
    )
    assert longest <= 32 <= MOST_WORDS
