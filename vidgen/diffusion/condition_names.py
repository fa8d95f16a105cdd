"""Names of conditions: which frames of a video are given, at any place and of any number.

A name is one of `NAMED`, or is spelled out: `frames@0,0.5,-1`, `every@8`, `clip@0:33`,
`any_frames`, or several joined by "+". Nothing here depends on the autoencoder or a video's length.
"""

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache

CLIP_LATENTS = 8  # latent frames of v2v's clip, besides a causal encoder's first: 33 or 32 frames
EASY_CLIP_LATENTS = 16  # of v2v_*_easy: 65 or 64 frames


@dataclass(frozen=True)
class FrameAt:
    """A single frame: its number (negative: from the end), or a fraction of the video's length."""

    at: int | float

    def __str__(self) -> str:
        return f"frames@{self.at}"


@dataclass(frozen=True)
class EveryFrame:
    """Frames 0, step, 2 step, ..."""

    step: int

    def __str__(self) -> str:
        return f"every@{self.step}"


@dataclass(frozen=True)
class ClipAt:
    """Frames `begin` up to, not including, `end`, as a Python slice counts them."""

    begin: int
    end: int | None

    def __str__(self) -> str:
        return f"clip@{self.begin}:{'' if self.end is None else self.end}"


@dataclass(frozen=True)
class EndClip:
    """A clip at the head or tail whose length is counted in latent frames."""

    head: bool
    latents: int

    def __str__(self) -> str:
        return f"the clip at the {'head' if self.head else 'tail'}"


@dataclass(frozen=True)
class AnyFrames:
    """The frames behind a random set of latent frames, for the training mix."""

    def __str__(self) -> str:
        return "any_frames"


Part = FrameAt | EveryFrame | ClipAt | EndClip | AnyFrames

NAMED: dict[str, tuple[Part, ...]] = {
    "t2v": (),
    "i2v_head": (FrameAt(0),),
    "i2v_tail": (FrameAt(-1),),
    "i2v_loop": (FrameAt(0), FrameAt(-1)),
    "i2v_middle": (FrameAt(0.5),),
    "v2v_head": (EndClip(True, CLIP_LATENTS),),
    "v2v_tail": (EndClip(False, CLIP_LATENTS),),
    "v2v_head_easy": (EndClip(True, EASY_CLIP_LATENTS),),
    "v2v_tail_easy": (EndClip(False, EASY_CLIP_LATENTS),),
}
FORMS = "frames@0,0.5,-1, every@8, clip@0:33, any_frames, or several joined by +"

_PLACE = re.compile(r"-?\d+|0?\.\d+")
_CLIP = re.compile(r"(-?\d+)?:(-?\d+)?")


@lru_cache
def parse_condition(name: str) -> tuple[Part, ...]:
    """The parts of a name; raises ValueError, in one line naming the forms."""
    if name in NAMED:
        return NAMED[name]
    parts = [part for text in name.split("+") for part in _parse_part(name, text)]
    if len(set(parts)) < len(parts):
        raise ValueError(f"{name!r} is no condition: it names a place twice")
    return tuple(parts)


def _parse_part(name: str, text: str) -> list[Part]:
    kind, at, rest = text.partition("@")
    if text == "any_frames":
        return [AnyFrames()]
    if NAMED.get(text):
        return list(NAMED[text])
    if at and kind == "frames":
        places = [place.strip() for place in rest.split(",")]
        if all(_PLACE.fullmatch(place) for place in places):
            return [FrameAt(float(p) if "." in p else int(p)) for p in places]
    if at and kind == "every" and rest.isdecimal() and int(rest) > 0:
        return [EveryFrame(int(rest))]
    if at and kind == "clip" and rest != ":" and (found := _CLIP.fullmatch(rest)):
        begin, end = found.groups()
        return [ClipAt(int(begin or 0), None if end is None else int(end))]
    near = difflib.get_close_matches(name, NAMED, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"{name!r} is no condition{hint}: write {', '.join(NAMED)}, or {FORMS}")


def check_condition(name: str) -> str:
    """The name itself, where it is one."""
    parse_condition(name)
    return name


def gives_images(name: str) -> bool:
    """Whether single frames are given, and no clip."""
    parts = parse_condition(name)
    return bool(parts) and not any(isinstance(part, ClipAt | EndClip) for part in parts)


def split_reference(text: str) -> tuple[str, str | None]:
    """A file and the place of the video that it shows: `end.png@-1` or `clip.mp4@40:73`."""
    path, at, place = text.rpartition("@")
    if not at or not (_PLACE.fullmatch(place) or (place != ":" and _CLIP.fullmatch(place))):
        return text, None
    return path, place


def condition_of_places(places: list[str]) -> str:
    """The condition that gives a frame or a clip at each place, in this order."""
    return "+".join(f"{'clip' if ':' in place else 'frames'}@{place}" for place in places)
