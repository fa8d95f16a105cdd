"""What the data of a recipe is: a manifest, a table of buckets, and how clips are read."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from vidgen.config import config


@config
class BucketConfig:
    batch: PositiveInt | None = None
    """Clips a data-parallel rank takes in one micro-step; null: as many as fit `tokens`."""
    keep: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Chance that a clip stays here; else a lower resolution may take it, or it sits out the epoch.
    Drawn afresh each epoch."""


@config
class LatentsConfig:
    folder: str
    """Latents and text features, as `vidgen encode` makes them. What it lacks is computed and
    added."""
    ahead: NonNegativeInt = 0
    """Batches whose missing entries are computed, in a thread and on a CUDA stream of its own,
    before training asks for them; 0: computed when asked for, between steps. Never changes what is
    read."""
    rolling_gb: PositiveFloat | None = None
    """Of the folder at most, in units of 10^9 bytes: the entries used longest ago make room for new
    ones. A folder begun so stays so. null: all are kept."""


@config
class DataConfig:
    manifest: str
    """A parquet file; its relative paths count from the folder it lies in."""
    buckets: dict[str, dict[str, BucketConfig]]
    """Resolution ("256px", "480p", "256px_ar1:1") to frame counts ("1", "33", "5-33") to batch."""
    tokens: PositiveInt | None = None
    """Video tokens of a data-parallel rank in one micro-step, for the buckets that say no batch."""
    latents: LatentsConfig | None = None
    """Train on latents and text features instead of clips; a folder's name alone is enough."""
    fps_max: PositiveFloat = 24.0
    """A faster clip is read every 2nd, 3rd, ... frame so that it comes down to this rate."""
    crop: Literal["center", "random"] = "center"
    """Which part of a clip is cut to the bucket's aspect ratio."""
    flip: bool = False
    """Mirror half of the clips; wrong where captions say left or right."""
    workers: NonNegativeInt = 1
    """Decoding processes; 0 decodes in the training thread, where a clip that hangs cannot be
    stopped. Never changes what is read."""
    decoder: Literal["pyav", "torchcodec"] = "pyav"
    """Which library decodes. torchcodec uses the machine's own FFmpeg; colours may differ by a
    level or two, which frames are read does not."""
    prefetch: PositiveInt = 2
    """Batches on the device ahead of the one in training. Never changes what is read."""
    check_files: Literal["sample", "all"] = "sample"
    """Which of the manifest's files must be found when it is opened."""
    clip_timeout_s: PositiveFloat = 60.0
    """A clip that takes a worker longer counts as unreadable."""
    bad_clip_limit: NonNegativeInt = 100
    """More unreadable clips than this, on all ranks together, stop the run."""
    cache_bytes: NonNegativeInt = 0
    """Decoded clips kept in memory, up to this many bytes; for data sets of a few small clips."""

    @field_validator("latents", mode="before")
    @classmethod
    def _folder_alone(cls, value: Any) -> Any:
        return {"folder": value} if isinstance(value, str) else value

    @field_validator("buckets", mode="before")
    @classmethod
    def _keys_are_text(cls, value: Any) -> Any:
        """YAML reads the frame count in `1: {batch: 45}` as a number."""
        if not isinstance(value, dict):
            return value
        return {
            str(resolution): {str(frames): bucket for frames, bucket in table.items()}
            if isinstance(table, dict)
            else table
            for resolution, table in value.items()
        }
