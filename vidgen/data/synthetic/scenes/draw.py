"""Drawing scenes at random, and which combinations training never shows."""

import itertools
from collections.abc import Iterable

import numpy as np

from vidgen.data.synthetic.scenes.world import (
    CLEAR,
    COLOURS,
    DIRECTIONS,
    SHAPES,
    SIZES,
    SPEEDS,
    TEXTURES,
    TURNS,
    Body,
    Motion,
    Relation,
    Scene,
    Setting,
)

RELATED = 0.5  # of the scenes with two objects, how many have one cross the other
PANNED = 0.5
MOTION_WEIGHTS: dict[Motion, float] = {"moves": 0.5, "hops": 0.15, "circles": 0.2, "stays": 0.15}

# Never shown in training, though each pair of their words is.
HELD_OUT = frozenset(
    (colour, shape, texture)
    for (c, colour), (s, shape), (t, texture) in itertools.product(
        enumerate(COLOURS), enumerate(SHAPES), enumerate(TEXTURES)
    )
    if (c + 2 * s + 3 * t) % 6 == 0
)


def held_out(scene: Scene) -> bool:
    """Whether training shows no scene with one of these objects."""
    return any((body.colour, body.shape, body.texture) in HELD_OUT for body in scene.bodies)


def draw_scene(
    rng: np.random.Generator,
    *,
    setting: Setting = CLEAR,
    held: bool = False,
    count: int | None = None,
) -> Scene:
    """A scene of trained combinations, or with `held` one whose first object is held out."""
    if count is None:
        count = 1 + int(rng.choice(3, p=setting.counts))
    relation: Relation | None = None
    if count == 2 and rng.random() < RELATED:
        relation = ("in front of", "behind")[int(rng.integers(2))]
    looks: list[tuple[str, str, str]] = []
    while len(looks) < count:
        look = (_one(rng, COLOURS), _one(rng, SHAPES), _one(rng, TEXTURES))
        wanted = held and not looks
        if (look in HELD_OUT) == wanted and look[0] not in [colour for colour, _, _ in looks]:
            looks.append(look)
    bodies = []
    for number, (colour, shape, texture) in enumerate(looks):
        size = _one(rng, SIZES)
        motion, heading, speed = _motion(rng, relation, number)
        radius = setting.radius[size]
        bodies.append(Body(colour, shape, size, texture, motion, heading, speed, radius))
    camera = _one(rng, DIRECTIONS) if rng.random() < PANNED else None
    return Scene(tuple(bodies), relation, camera)


def _motion(
    rng: np.random.Generator, relation: Relation | None, number: int
) -> tuple[Motion, str | None, str | None]:
    """The crossing object moves quickly; the crossed one stays or moves slowly."""
    if relation is not None:
        if number == 0:
            return "moves", _one(rng, DIRECTIONS), "quickly"
        if rng.random() < 0.5:
            return "stays", None, None
        return "moves", _one(rng, DIRECTIONS), "slowly"
    weights = list(MOTION_WEIGHTS.values())
    motion: Motion = list(MOTION_WEIGHTS)[int(rng.choice(len(weights), p=weights))]
    if motion == "stays":
        return motion, None, None
    return motion, _one(rng, TURNS if motion == "circles" else DIRECTIONS), _one(rng, SPEEDS)


def _one(rng: np.random.Generator, names: Iterable[str]) -> str:
    choices = list(names)
    return choices[int(rng.integers(len(choices)))]
