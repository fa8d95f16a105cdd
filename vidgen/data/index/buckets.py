"""The table of buckets a recipe names, and which clip belongs to which."""

import math
import re
from dataclasses import dataclass

import numpy as np

from vidgen.data.config import BucketConfig, DataConfig
from vidgen.data.index.manifest import Manifest
from vidgen.errors import UserError
from vidgen.models.geometry import DEFAULT, Geometry

# Width to height; each also upright.
_RATIOS = (1.0, 4 / 3, 3 / 2, 8 / 5, 16 / 9, 1.85, 2.0, 2.39)
_AREA_SLACK = 0.8  # a clip of at least this part of a resolution's area may be scaled up to it


@dataclass(frozen=True, order=True)
class Bucket:
    resolution: str
    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Shelf:
    """One resolution of the table: the frame counts it takes and the shapes they come in."""

    resolution: str
    area: float  # pixels
    shapes: tuple[tuple[int, int], ...]  # (height, width)
    frames: dict[int, BucketConfig]  # ascending


class BucketTable:
    def __init__(self, cfg: DataConfig, geometry: Geometry = DEFAULT) -> None:
        """Frame counts and sides are those that make whole latents and tokens."""
        self.fps_max = cfg.fps_max
        self._tokens = cfg.tokens
        self._geometry = geometry
        shelves = [_shelf(name, table, geometry) for name, table in cfg.buckets.items()]
        if not shelves:
            raise UserError("data.buckets is empty; expected e.g. {256px: {1: {batch: 8}}}")
        self.shelves = sorted(shelves, key=lambda shelf: -shelf.area)
        self.buckets = [
            Bucket(shelf.resolution, frames, height, width)
            for shelf in self.shelves
            for frames in shelf.frames
            for height, width in shelf.shapes
        ]

    def config(self, bucket: Bucket) -> BucketConfig:
        shelf = next(s for s in self.shelves if s.resolution == bucket.resolution)
        return shelf.frames[bucket.frames]

    def batch(self, bucket: Bucket) -> int:
        """Clips of a rank in a micro-step: the table's number, or what fits the token budget."""
        batch = self.config(bucket).batch
        if batch is not None:
            return batch
        where = f"data.buckets.{bucket.resolution}: {bucket.frames} frames have no batch"
        if self._tokens is None:
            raise UserError(f"{where}; give one, or a budget for all of them: data.tokens=...")
        clip = self.tokens(bucket)
        if clip > self._tokens:
            raise UserError(
                f"{where}, and one clip of {bucket} is {clip} tokens; data.tokens={self._tokens} "
                f"does not hold it: set data.tokens={clip} or more"
            )
        return self._tokens // clip

    def tokens(self, bucket: Bucket) -> int:
        """Video tokens of one clip."""
        return self._geometry.tokens(bucket.frames, bucket.height, bucket.width)

    def describe(self) -> list[list[object]]:
        """Everything that decides which clip goes where, in JSON's types: to be hashed."""
        rows: list[list[object]] = [["fps_max", self.fps_max]]
        for bucket in self.buckets:
            keep = self.config(bucket).keep
            rows.append(
                [bucket.resolution, bucket.frames, bucket.height, bucket.width, float(keep)]
            )
        return rows


@dataclass(frozen=True)
class Assignment:
    """Which bucket (its number in the table) each row is in; -1 for none, with why."""

    bucket_of_row: np.ndarray
    left_out: dict[str, int]  # reason to number of clips


def frame_interval(fps: np.ndarray, fps_max: float) -> np.ndarray:
    """Read every how-many-th frame; 1 where the rate is unknown."""
    known = np.nan_to_num(fps, nan=1.0, posinf=1.0, neginf=1.0)
    # A rate like 24000/1001 * 1.001 must not be halved for its rounding error.
    return np.maximum(1, np.ceil(known / fps_max - 1e-3)).astype(np.int64)


def assign(table: BucketTable, manifest: Manifest, chances: np.ndarray | None) -> Assignment:
    """Each clip goes to the highest resolution it fills and there to the most frames it has.

    `chances` (rows, shelves) in [0, 1) decide against `keep`; None keeps every clip.
    """
    rows = len(manifest)
    frames_left = 1 + (manifest.num_frames.astype(np.int64) - 1) // frame_interval(
        manifest.fps, table.fps_max
    )
    is_image = manifest.num_frames == 1
    area = manifest.height.astype(np.int64) * manifest.width
    log_ratio = np.log(manifest.width / manifest.height)
    found = np.full(rows, -1, np.int64)
    large_enough, long_enough = np.zeros(rows, bool), np.zeros(rows, bool)
    first_bucket = 0
    for number, shelf in enumerate(table.shelves):
        counts = np.array(list(shelf.frames))
        most = np.searchsorted(counts, frames_left, side="right") - 1  # -1: fewer than the fewest
        # Images have a count of their own, in which no video may end.
        fits = (most >= 0) & ((counts[most] == 1) == is_image)
        large = area >= _AREA_SLACK * shelf.area
        large_enough |= large
        long_enough |= large & fits
        candidate = (found < 0) & large & fits
        if chances is not None:
            keep = np.array([bucket.keep for bucket in shelf.frames.values()])
            candidate &= chances[:, number] < keep[most]
        ratios = np.log([width / height for height, width in shelf.shapes])
        shape = np.abs(log_ratio[candidate, None] - ratios).argmin(1)
        found[candidate] = first_bucket + most[candidate] * len(shelf.shapes) + shape
        first_bucket += len(counts) * len(shelf.shapes)
    out = found < 0
    reasons = {
        "smaller than every resolution": out & ~large_enough,
        "an image, and no bucket has 1 frame": out & large_enough & ~long_enough & is_image,
        "fewer frames than every bucket": out & large_enough & ~long_enough & ~is_image,
        "left out by keep": out & long_enough,
    }
    left_out = {reason: int(mask.sum()) for reason, mask in reasons.items() if mask.any()}
    return Assignment(found, left_out)


def _shelf(name: str, table: dict[str, BucketConfig], geometry: Geometry) -> Shelf:
    try:
        area, ratio = parse_resolution(name)
    except UserError as error:
        raise UserError(f"data.buckets: {error}") from None
    ratios = [ratio] if ratio is not None else [*_RATIOS, *(1 / ratio for ratio in _RATIOS)]
    shapes = dict.fromkeys(shape_of(area, ratio, geometry.side) for ratio in ratios)
    frames: dict[int, BucketConfig] = {}
    for key, bucket in table.items():
        for count in _frame_counts(name, key, geometry):
            if count in frames:
                raise UserError(f"data.buckets.{name}: {count} frames are listed twice")
            frames[count] = bucket
    if not frames:
        raise UserError(f"data.buckets.{name} is empty; expected e.g. {{33: {{batch: 8}}}}")
    return Shelf(name, area, tuple(shapes), dict(sorted(frames.items())))


def parse_resolution(name: str) -> tuple[float, float | None]:
    """Area in pixels of "256px", "480p" or "256px_ar16:9", and width to height where it is said."""
    match = re.fullmatch(r"(\d+)(px|p)(?:_ar(\d+(?:\.\d+)?:\d+(?:\.\d+)?))?", name)
    if match is None or int(match[1]) == 0:
        raise UserError(f'"{name}" is no resolution; expected e.g. 256px or 480p')
    side, kind, aspect = match.groups()
    area = int(side) ** 2 * (1.0 if kind == "px" else 16 / 9)
    return area, None if aspect is None else parse_aspect(aspect)


def parse_aspect(text: str) -> float:
    """Width to height of "16:9"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", text)
    if match is None or float(match[1]) == 0 or float(match[2]) == 0:
        raise UserError(f'"{text}" is no aspect ratio; expected width:height, e.g. 16:9')
    return float(match[1]) / float(match[2])


def shape_of(area: float, ratio: float, multiple: int) -> tuple[int, int]:
    """(height, width) nearest to an area and a width to height, in multiples."""

    def nearest(side: float) -> int:
        return max(multiple, round(side / multiple) * multiple)

    return nearest(math.sqrt(area / ratio)), nearest(math.sqrt(area * ratio))


def _frame_counts(resolution: str, key: str, geometry: Geometry) -> list[int]:
    """Of "33" or "5-33"."""
    where = f"data.buckets.{resolution}"
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", key)
    if match is None:
        raise UserError(f'{where}: "{key}" is no frame count; expected e.g. 33 or 5-33')
    low, high = int(match[1]), int(match[2] or match[1])
    valid = [frames for frames in range(low, high + 1) if geometry.takes(frames)]
    if not valid:
        below, above = geometry.nearest_frames(low)
        raise UserError(
            f"{where}: {key} frames; this autoencoder takes {geometry.frame_form}, the nearest are "
            f"{below} and {above}"
        )
    return valid
