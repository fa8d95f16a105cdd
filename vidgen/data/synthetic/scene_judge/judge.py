"""A judge of sampled scenes that looks only at pixels, and at what was asked for."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidgen.data.synthetic.scene_judge import looks, picture, segment, tracks
from vidgen.data.synthetic.scene_judge.segment import Mask
from vidgen.data.synthetic.scenes.render import outline
from vidgen.data.synthetic.scenes.world import CLEAR, Body, Scene

PRESENT = 0.4  # of the frames in which an object must be seen: a larger one may hide it
SCATTERED = 2.2  # spread of a colour that is more than one object
MAX_WRONG = 0.35  # of its area: the most that may disagree with where a hidden object is laid
MIN_OVERLAP = 25  # pixels, over all frames, that tell which of two objects is in front


@dataclass(frozen=True)
class Seen:
    """One object as measured; None where nothing clear is seen."""

    size: str | None = None
    shape: str | None = None
    texture: str | None = None
    motion: str | None = None
    heading: str | None = None
    speed: str | None = None
    path_error: float = float("nan")  # pixels from the motion asked for
    start: tuple[float, float] = (float("nan"), float("nan"))  # centre in the first frame
    end: tuple[float, float] = (float("nan"), float("nan"))  # and in the last


@dataclass(frozen=True)
class Verdict:
    """`right` says of each attribute asked for whether it is there, as a share of the objects."""

    right: dict[str, float]
    path_error: float  # mean over the objects that are there, pixels; NaN without any
    ghosting: float
    sharpness: float
    contrast: float
    flicker: float
    count: int
    camera: str | None
    objects: dict[str, Seen] = field(default_factory=dict)  # by the colour asked for

    def record(self) -> dict[str, Any]:
        return asdict(self)


def judge(frames_THWC: NDArray[np.uint8], scene: Scene) -> Verdict:
    """Judge a video (T, H, W, 3) by the scene it was asked to show."""
    video = frames_THWC.astype(np.float32) / 255
    found = segment.masks(video)
    area = {name: segment.areas(mask) for name, mask in found.items()}
    there = {
        name: mask
        for name, mask in found.items()
        if float((area[name] >= segment.MIN_AREA).mean()) >= PRESENT
    }
    objects = np.zeros(video.shape[:3], dtype=bool)
    for mask in there.values():
        objects |= mask
    count = sum(1 + _scattered(mask, objects & ~mask) for mask in there.values())
    seen: dict[str, Seen] = {}
    paths: dict[str, NDArray[np.float64]] = {}
    for body in scene.bodies:
        if body.colour in there:
            seen[body.colour], paths[body.colour] = _look(
                video, there[body.colour], objects & ~there[body.colour], body
            )
    camera = picture.camera(picture.background_motion(video, objects))
    errors = [one.path_error for one in seen.values() if not np.isnan(one.path_error)]
    return Verdict(
        right=_right(scene, seen, count, camera, found, paths, moving=len(video) > 1),
        path_error=float(np.mean(errors)) if errors else float("nan"),
        ghosting=picture.ghosting(video, objects),
        sharpness=picture.sharpness(video, objects),
        contrast=picture.contrast(video, objects),
        flicker=picture.flicker(video, objects),
        count=count,
        camera=camera,
        objects=seen,
    )


def _scattered(mask: Mask, others: Mask) -> bool:
    """Whether a colour is more than one object, in frames in which nothing else cuts it."""
    near = (segment.grown(mask, 2) & others).any((1, 2))
    free = segment.whole(mask) & ~near
    return bool(free.any()) and float(np.median(segment.spread(mask)[free])) > SCATTERED


def _look(
    video: NDArray[np.float32], mask: Mask, others: Mask, body: Body
) -> tuple[Seen, NDArray[np.float64]]:
    whole = segment.whole(mask)
    track = segment.centres(mask)
    radius = float(np.sqrt(np.median(segment.areas(mask)[whole]) / np.pi))
    shape = looks.shape(mask[whole], track[whole], radius)
    near = segment.grown(mask, 2) & others
    if all(near[frame].any() for frame in np.flatnonzero(whole)):  # it may never be seen whole
        shape, radius = looks.guessed(mask, others, track)
        whole &= ~whole
    place = np.where(whole[:, None], track, np.nan)
    if shape is not None:
        for frame in np.flatnonzero(~whole & (segment.areas(mask) > 0)):
            laid = looks.hidden(mask[frame], others[frame], track[frame], shape, radius)
            if laid.wrong < MAX_WRONG * np.pi * radius**2:
                place[frame] = laid.centre
    known = ~np.isnan(place[:, 0])
    if not known.any():
        return Seen(size=looks.size(radius), shape=shape), track
    texture = looks.texture(video, np.where(known[:, None], place, np.nan), radius, mask)
    size = looks.size(radius)
    # Where it bounces depends on what it is, which may not be what was asked for.
    reach = body.radius if size is None else CLEAR.radius[size]
    found = tracks.fits(place, video.shape[1], shape or body.shape, reach)
    best, asked = found[0], tracks.fit_of(found, body)
    seen = Seen(
        size=size,
        shape=shape,
        texture=texture,
        motion=best.motion,
        heading=best.heading,
        speed=best.speed,
        path_error=asked.error,
        start=(float(best.path[0, 0]), float(best.path[0, 1])),
        end=(float(best.path[-1, 0]), float(best.path[-1, 1])),
    )
    return seen, best.path


def _right(
    scene: Scene,
    seen: dict[str, Seen],
    count: int,
    camera: str | None,
    found: dict[str, Mask],
    paths: dict[str, NDArray[np.float64]],
    *,
    moving: bool,
) -> dict[str, float]:
    def share(name: str) -> float:
        """An object that is not there has nothing right."""
        return float(
            np.mean(
                [
                    body.colour in seen and getattr(seen[body.colour], name) == getattr(body, name)
                    for body in scene.bodies
                ]
            )
        )

    right = {
        "count": float(count == len(scene.bodies)),
        "colour": float(np.mean([body.colour in seen for body in scene.bodies])),
        **{name: share(name) for name in ("shape", "size", "texture")},
    }
    if moving:
        right["motion"] = float(
            np.mean(
                [
                    body.colour in seen
                    and seen[body.colour].motion == body.motion
                    and seen[body.colour].heading == body.heading
                    for body in scene.bodies
                ]
            )
        )
        right["speed"] = share("speed")
        right["camera"] = float(camera == scene.camera)
        if scene.relation is not None:
            right["order"] = float(_order(scene, found, paths) == scene.relation)
    return right


def _order(
    scene: Scene, found: dict[str, Mask], paths: dict[str, NDArray[np.float64]]
) -> str | None:
    """Whose colour is seen where both objects are; None where they never overlap."""
    first, second = scene.bodies
    if first.colour not in paths or second.colour not in paths:
        return None
    one, other = found[first.colour], found[second.colour]
    both = _cover(first, paths[first.colour], one.shape) & _cover(
        second, paths[second.colour], one.shape
    )
    front, back = int((one & both).sum()), int((other & both).sum())
    if front + back < MIN_OVERLAP:
        return None
    return "in front of" if front > back else "behind"


def _cover(body: Body, path: NDArray[np.float64], shape: tuple[int, ...]) -> Mask:
    """The pixels well inside an object's outline."""
    x = np.arange(shape[2]) + 0.5 - path[:, 0, None, None]
    y = np.arange(shape[1])[:, None] + 0.5 - path[:, 1, None, None]
    return np.asarray(outline(body.shape, x, y, body.radius) > 0.95)
