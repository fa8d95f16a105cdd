"""The judge sees what is there, and nothing where nothing is."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vidgen.data.synthetic.judge import Verdict, judge
from vidgen.data.synthetic.shapes import BACKGROUND, SCENES, Scene, render
from vidgen.models.block_dct.config import BlockDCTConfig
from vidgen.models.block_dct.model import BlockDCT

Clips = list[tuple[Scene, NDArray[np.uint8]]]


@pytest.fixture(scope="module")
def clips() -> Clips:
    rng = np.random.default_rng(0)
    return [(scene, render(scene, 9, 64, rng)) for scene in SCENES]


def score(verdicts: list[Verdict], scenes: list[Scene]) -> dict[str, float]:
    matches = [v.matches(s) for v, s in zip(verdicts, scenes, strict=True)]
    return {name: float(np.mean([m[name] for m in matches])) for name in matches[0]}


def through_the_codec(video: NDArray[np.uint8], config: BlockDCTConfig) -> NDArray[np.uint8]:
    ae = BlockDCT(config)
    x = torch.from_numpy(video).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    pixels = (ae.decode(ae.encode(x))[0] + 1) * 127.5
    found: NDArray[np.uint8] = pixels.round().clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()
    return found


def test_rendered_clips_are_judged_right(clips: Clips) -> None:
    found = score([judge(video) for _, video in clips], [scene for scene, _ in clips])
    assert found == {"colour": 1.0, "shape": 1.0, "direction": 1.0}


def test_so_are_clips_as_the_codec_keeps_them(clips: Clips) -> None:
    """What the quickstart's model can reach at best."""
    kept = [judge(through_the_codec(video, BlockDCTConfig())) for _, video in clips]
    found = score(kept, [scene for scene, _ in clips])
    assert found["colour"] == found["direction"] == 1.0
    assert found["shape"] >= 0.95


def test_other_captions_score_near_chance(clips: Clips) -> None:
    verdicts = [judge(video) for _, video in clips]
    rng = np.random.default_rng(1)
    rounds = []
    for _ in range(20):
        order = rng.permutation(len(clips))
        rounds.append(score(verdicts, [clips[i][0] for i in order]))
    mean = {name: np.mean([r[name] for r in rounds]) for name in rounds[0]}
    assert mean["colour"] == pytest.approx(1 / 4, abs=0.05)
    assert mean["direction"] == pytest.approx(1 / 4, abs=0.05)
    assert mean["shape"] == pytest.approx(1 / 3, abs=0.05)


def noise(kind: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    shape = (17, 64, 64, 3)
    if kind == "uniform":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if kind == "still":
        return np.repeat(rng.integers(0, 256, (1, *shape[1:]), dtype=np.uint8), 17, axis=0)
    if kind == "blocks":  # what an untrained model's latents decode to
        coarse = np.kron(rng.standard_normal((17, 8, 8, 3)), np.ones((1, 8, 8, 1)))
        return np.clip(128 + 60 * coarse, 0, 255).astype(np.uint8)
    return np.clip(np.array(BACKGROUND) + 8 * rng.standard_normal(shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["uniform", "still", "blocks", "faint"])
def test_noise_is_nothing(kind: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(12):
        assert judge(noise(kind, rng)) == Verdict(None, None, None)


def test_a_shape_that_stands_still_moves_nowhere() -> None:
    video = render(SCENES[0], 17, 64, np.random.default_rng(0))
    still = np.repeat(video[8:9], 17, axis=0)
    assert judge(still) == Verdict("red", "circle", None)
    slanted = np.stack([np.roll(still[0], (n - 8, n - 8), (0, 1)) for n in range(17)])
    assert judge(slanted).direction is None


def test_a_shape_that_goes_missing_is_not_judged() -> None:
    video = render(SCENES[0], 17, 64, np.random.default_rng(0))
    video[9] = BACKGROUND
    assert judge(video) == Verdict(None, None, None)


def test_a_colour_that_was_never_asked_for() -> None:
    video = render(SCENES[0], 17, 64, np.random.default_rng(0))
    purple = video[..., [0, 1, 0]]
    assert judge(purple) == Verdict(None, "circle", "left")
