"""What a scene says: objects, how they move, which one is in front, and what the camera does.

Everything a caption can name is here; everything it leaves open (positions, phases, background) is
drawn in `place`.
"""

import math
from dataclasses import dataclass
from typing import Literal

COLOURS = {
    "red": (228, 48, 44),
    "yellow": (232, 208, 48),
    "green": (44, 188, 76),
    "blue": (58, 92, 234),
    "pink": (218, 72, 206),
}
SHAPES = ("circle", "square", "triangle")
# Half a shape's width over the radius of the circle with the same area.
REACH = {"circle": 1.0, "square": math.sqrt(math.pi) / 2, "triangle": math.sqrt(math.pi / 2)}
SIZES = {"small": 9.5, "large": 15.5}  # radius in pixels of the circle with the same area
TEXTURES = ("plain", "striped")
STRIPE_PERIOD, STRIPE_DARK = 8.0, 0.45  # pixels; brightness of the dark half

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x, y; y grows down
TURNS = {"clockwise": 1, "anticlockwise": -1}  # as seen: y grows down
SPEEDS = {"slowly": 1.2, "quickly": 2.8}  # pixels a frame
ORBIT = 15.0  # radius of a circling object's path, pixels
HOP_FRAMES = 6  # frames a hopping object moves, at twice its speed, and then rests
PAN = 1.5  # pixels the background moves a frame while the camera pans

Motion = Literal["moves", "hops", "circles", "stays"]
Relation = Literal["in front of", "behind"]


@dataclass(frozen=True)
class Body:
    """One object; `heading` is a direction or a turn, and None with `speed` when it stays."""

    colour: str
    shape: str
    size: str
    texture: str
    motion: Motion
    heading: str | None = None
    speed: str | None = None

    @property
    def radius(self) -> float:
        return SIZES[self.size]


@dataclass(frozen=True)
class Scene:
    """One to three objects of different colours. With a relation the first crosses the second."""

    bodies: tuple[Body, ...]
    relation: Relation | None = None
    camera: str | None = None  # direction the camera pans; None: it stays still

    def __post_init__(self) -> None:
        if self.relation is not None and len(self.bodies) != 2:
            raise ValueError(f"{self.relation!r} is said of two objects, not {len(self.bodies)}")
        colours = [body.colour for body in self.bodies]
        if len(set(colours)) != len(colours):
            raise ValueError(f"objects of one scene differ in colour, found {colours}")
