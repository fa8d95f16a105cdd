"""The prompts of the proving ground, and what real videos of the same scenes measure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidgen.data.synthetic.scene_judge.features import features
from vidgen.data.synthetic.scene_judge.judge import judge
from vidgen.data.synthetic.scenes import Scene, caption, draw_scene, held_out, place, render

FRAMES, SIDE = 16, 96
HELD_OUT_SHARE = 3  # every third prompt is of a combination that training never shows
SEED = 20_000
# Prompts to choose settings on, and prompts to report on, have no scene in common.
PARTS = {"report": 0, "tune": 1}
REAL = 100  # first seed of real videos, far from those of samples


@dataclass(frozen=True)
class Item:
    """One prompt and the seed of its sample."""

    number: int
    seed: int
    scene: Scene

    @property
    def prompt(self) -> str:
        return caption(self.scene)

    @property
    def held_out(self) -> bool:
        return held_out(self.scene)


def items(
    prompts: int = 96, seeds: int = 1, *, part: str = "report", first_seed: int = 0
) -> list[Item]:
    """The first `prompts` of a part, each with `seeds` seeds; more extend what fewer gave."""
    return [
        Item(number, first_seed + repeat * 1000 + number, _scene(part, number))
        for repeat in range(seeds)
        for number in range(prompts)
    ]


def _scene(part: str, number: int) -> Scene:
    rng = np.random.default_rng([SEED, PARTS[part], number])
    return draw_scene(rng, held=number % HELD_OUT_SHARE == HELD_OUT_SHARE - 1)


def real_video(item: Item, take: int) -> NDArray[np.uint8]:
    """The scene as the world shows it, with positions and background of its own."""
    rng = np.random.default_rng([SEED, REAL + take, item.number, item.seed])
    return render(place(item.scene, FRAMES, SIDE, rng))


def measure(video: NDArray[np.uint8], item: Item) -> dict[str, object]:
    """What the table is made of, as JSON."""
    verdict = judge(video, item.scene)
    places = [place_of(one.start, one.end) for one in verdict.objects.values()]
    return {
        "right": verdict.right,
        "path_error": verdict.path_error,
        "ghosting": verdict.ghosting,
        "sharpness": verdict.sharpness,
        "contrast": verdict.contrast,
        "flicker": verdict.flicker,
        "places": [p for p in places if not np.isnan(p).any()],
        "features": [round(float(x), 5) for x in features(video)],
    }


def place_of(start: tuple[float, float], end: tuple[float, float]) -> list[float]:
    """Where an object begins and ends, in picture sides: positions and phases in one."""
    return [round(x / SIDE, 5) for x in (*start, *end)]
