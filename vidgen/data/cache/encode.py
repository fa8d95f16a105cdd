"""A whole data set's latents and text features, computed once."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from vidgen.data.cache.codec import ClipCodec, Found
from vidgen.data.config import DataConfig
from vidgen.data.index.buckets import Bucket, BucketTable, assign
from vidgen.data.index.manifest import Manifest
from vidgen.data.loader import sample_shape
from vidgen.errors import UserError
from vidgen.models.geometry import DEFAULT, Geometry
from vidgen.runtime import work
from vidgen.runtime.loader.feed import Feed, Filling, Job
from vidgen.runtime.memory import Arena, Lane


def encode_manifest(
    data: DataConfig,
    manifest: Manifest,
    codec: ClipCodec,
    *,
    device: torch.device | str,
    geometry: Geometry = DEFAULT,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[work.Progress], None] | None = None,
) -> work.Counts:
    """Add to the codec's cache what it lacks of each clip that has a bucket.

    A run that was stopped continues where it was. Ranks share the clips.
    """
    table = BucketTable(data, geometry)
    assignment = assign(table, manifest, None)
    bucket_of = {
        int(row): table.buckets[assignment.bucket_of_row[row]]
        for row in (assignment.bucket_of_row >= 0).nonzero()[0]
    }
    if not bucket_of:
        why = "; ".join(f"{count} {reason}" for reason, count in assignment.left_out.items())
        raise UserError(f"no clip of {manifest.path} has a bucket: {why}. Change data.buckets")
    if rank == 0:
        codec.cache.sweep()

    def process(rows: Sequence[int]) -> work.Outcomes:
        return _encode(rows, bucket_of, data, manifest, codec, torch.device(device))

    return work.run(
        list(bucket_of),
        process,
        failures=work.FailureLimit(
            data.bad_clip_limit,
            "data.bad_clip_limit",
            "clips",
            lambda row: f"{manifest[row].path} (row {row})",
        ),
        rank=rank,
        world=world,
        progress=progress,
    )


def _encode(
    rows: Sequence[int],
    bucket_of: Mapping[int, Bucket],
    data: DataConfig,
    manifest: Manifest,
    codec: ClipCodec,
    device: torch.device,
) -> work.Outcomes:
    """Clips are read by workers while those before them are encoded here."""

    def fill(row: int, sample: int, out: np.ndarray) -> Filling[Found | str]:
        return codec.read(manifest[row], bucket_of[row])

    shapes = {bucket: sample_shape(bucket, codec) for bucket in {bucket_of[row] for row in rows}}
    workers = min(data.workers, len(rows))
    ahead = workers + data.prefetch if workers else 1
    on_host = device.type == "cpu"
    slot = max(shape[0] for shape in shapes.values())
    # On the host a clip is encoded in its slot, and while that of the next is made.
    arena = Arena(
        (ahead + 2 * on_host) * (slot + 256),
        pinned=not on_host,
        shared=workers > 0,
        name="encode arena",
    )
    feed: Feed[int, Found | str] = Feed(
        (Job(row, (1, *shapes[bucket_of[row]])) for row in rows),
        fill,
        arena=arena,
        lane=None if on_host else Lane(device, name="encode lane"),
        largest=slot,
        workers=workers,
        ahead=ahead,
        timeout_s=data.clip_timeout_s,
        name="encode",
    )
    try:
        for _ in rows:
            row, contents, (found,) = feed.next()
            if isinstance(found, str):
                yield work.Failed(found)
            elif found.cached:
                yield work.Outcome.CACHED
            else:
                codec.take(contents[0], bucket_of[row], row, found)
                yield work.Outcome.COMPUTED
            del contents  # a view of the slot, which the next clip needs
    finally:
        feed.close()
    arena.close()
