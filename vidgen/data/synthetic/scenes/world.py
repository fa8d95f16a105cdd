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
SIZES = ("small", "large")
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
class Setting:
    """How large objects are, how busy backgrounds, and how many objects scenes have."""

    name: str
    radius: dict[str, float]  # by size: pixels, of the circle with the same area
    waves: int  # of the background
    wave_length: tuple[float, float]  # pixels
    counts: tuple[float, float, float]  # weights of one, two and three objects


# What the autoencoder and the first steps of the generator learn from: small objects, busy
# backgrounds. CLEAR is the world in which a model is judged.
FINE = Setting("fine", {"small": 9.5, "large": 15.5}, 6, (22, 56), (0.55, 0.37, 0.08))
CLEAR = Setting("clear", {"small": 12.5, "large": 19.5}, 3, (34, 72), (0.62, 0.34, 0.04))
SETTINGS = {setting.name: setting for setting in (FINE, CLEAR)}


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
    radius: float = 0.0  # pixels, of the circle with the same area


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
