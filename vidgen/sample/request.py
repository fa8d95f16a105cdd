"""Everything that decides one video, and how a command's words become it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidgen.data.index.buckets import BucketTable, parse_aspect, parse_resolution, shape_of
from vidgen.diffusion.condition_names import (
    check_condition,
    condition_of_places,
    split_reference,
)
from vidgen.diffusion.config import ConditionName
from vidgen.errors import UserError

if TYPE_CHECKING:
    from vidgen.sample.pipeline import Pipeline

SIZES = ("height", "width", "resolution", "aspect")


@dataclass(frozen=True)
class Request:
    """One video; nothing else than this and the weights decides what it shows."""

    prompt: str
    seed: int
    frames: int
    height: int
    width: int
    steps: int
    guidance: float
    guidance_img: float
    fps: float
    motion_score: float | None
    negative: str = ""
    condition: ConditionName = "t2v"
    ref: tuple[str, ...] = ()
    solver: str = "euler"

    def shared(self) -> "Request":
        """What requests that are made together have in common."""
        return replace(self, prompt="", seed=0, negative="", ref=())

    def record(self) -> str:
        """As `vidgen sample --like` reads it: keyword arguments of `make_requests`."""
        record = asdict(self)
        record["prompts"] = [record.pop("prompt")]
        return json.dumps(record)


def make_requests(
    pipeline: "Pipeline",
    prompts: Sequence[str | Mapping[str, Any]],
    *,
    samples: int = 1,
    seed: int = 0,
    **common: Any,
) -> list[Request]:
    """`samples` requests a prompt, with seeds seed, seed + 1, ...; the rest is the recipe's.

    A prompt is a text, or a mapping with `prompt` and what it has of its own. A sample's seed does
    not depend on how many prompts or samples there are beside it.
    """
    requests = []
    for prompt in prompts:
        row = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt)
        first = int(row.pop("seed", seed))
        # A size of its own replaces the common one, in whichever form either is given.
        own_size = any(name in row for name in SIZES)
        rest = {k: v for k, v in common.items() if not (own_size and k in SIZES)}
        one = _request(pipeline, first, **{**rest, **row})
        requests += [replace(one, seed=first + n) for n in range(samples)]
    return requests


def _request(
    pipeline: "Pipeline",
    seed: int,
    *,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    resolution: str | None = None,
    aspect: str | None = None,
    **given: Any,
) -> Request:
    longest, *size = largest_bucket(pipeline)
    defaults = pipeline.recipe.sample
    settings = {
        "steps": defaults.steps,
        "guidance": defaults.guidance,
        "guidance_img": defaults.guidance_img,
        "fps": defaults.fps,
        "motion_score": defaults.motion_score,
        "solver": defaults.solver,
        **given,
    }
    settings.update(_placed(tuple(settings.get("ref", ())), settings.get("condition", "t2v")))
    if settings["ref"] and settings.get("condition", "t2v") == "t2v":
        raise UserError(
            f"{settings['ref'][0]} is a reference, and t2v takes none; say a condition, or "
            f"the frame it shows: {settings['ref'][0]}@0"
        )
    if (height is None) != (width is None):
        raise UserError("height and width go together; or give a resolution and an aspect")
    if height is None or width is None:
        height, width = _shape(pipeline, (size[0], size[1]), resolution, aspect)
    elif resolution is not None or aspect is not None:
        raise UserError("height and width, or resolution and aspect: not both")
    return Request(
        seed=seed,
        frames=longest if frames is None else frames,
        height=height,
        width=width,
        **settings,
    )


def _placed(refs: tuple[str, ...], condition: ConditionName) -> dict[str, Any]:
    """Files and condition of references, which may say what they show: `end.png@-1`."""
    found = [(text, None) if Path(text).exists() else split_reference(text) for text in refs]
    places = [place for _, place in found if place is not None]
    if not places:
        return {"ref": refs}
    if len(places) < len(refs):
        path = next(path for path, place in found if place is None)
        raise UserError(f"{path} names no frame, unlike {refs[0]}: write {path}@0, or {path}@-1")
    named = condition_of_places(places)
    if condition not in ("t2v", named):
        raise UserError(
            f"{refs[0]} names the frame it shows, and so does condition {condition}: leave one out"
        )
    return {"ref": tuple(path for path, _ in found), "condition": check_condition(named)}


def _shape(
    pipeline: "Pipeline", size: tuple[int, int], resolution: str | None, aspect: str | None
) -> tuple[int, int]:
    if resolution is None and aspect is None:
        return size
    area, ratio = float(size[0] * size[1]), size[1] / size[0]
    if resolution is not None:
        area, named = parse_resolution(resolution)
        ratio = named or ratio
    if aspect is not None:
        ratio = parse_aspect(aspect)
    return shape_of(area, ratio, pipeline.geometry.side)


def largest_bucket(pipeline: "Pipeline") -> tuple[int, int, int]:
    """Frames, height and width of the longest and largest videos trained on, nearest to 16:9."""
    table = BucketTable(pipeline.recipe.data, pipeline.geometry)
    frames = max(bucket.frames for bucket in table.buckets)
    shelf = next(shelf for shelf in table.shelves if frames in shelf.frames)  # by falling area
    height, width = min(shelf.shapes, key=lambda s: abs(math.log(s[1] / s[0] * 9 / 16)))
    return frames, height, width
