"""A whole data set's latents and text features, computed once."""

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from vidgen.data.cache.codec import ClipCodec, Found
from vidgen.data.cache.latents import EncodeCounts
from vidgen.data.config import DataConfig
from vidgen.data.index.buckets import BucketTable, assign
from vidgen.data.index.manifest import Manifest
from vidgen.data.loader import sample_shape
from vidgen.errors import UserError
from vidgen.runtime.loader.feed import Feed, Filling, Job
from vidgen.runtime.memory import Arena, Lane

_log = logging.getLogger(__name__)


def encode_manifest(
    data: DataConfig,
    manifest: Manifest,
    codec: ClipCodec,
    *,
    device: torch.device | str,
    temporal_step: int = 4,
    causal: bool = True,
    spatial_multiple: int = 16,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[EncodeCounts], None] | None = None,
) -> EncodeCounts:
    """Add to the codec's cache what it lacks of each clip that has a bucket.

    What is there already is kept, so a stopped run goes on where it was. Clips are read by
    `data.workers` processes while those before them are encoded. Ranks share out the rows.
    """
    table = BucketTable(
        data, temporal_step=temporal_step, causal=causal, spatial_multiple=spatial_multiple
    )
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
    rows = list(bucket_of)[rank::world]
    counts = EncodeCounts(len(rows))
    if not rows:
        return counts

    def fill(row: int, sample: int, out: np.ndarray) -> Filling[Found | str]:
        return codec.read(manifest[row], bucket_of[row])

    shapes = {bucket: sample_shape(bucket, codec) for bucket in {bucket_of[row] for row in rows}}
    workers = min(data.workers, len(rows))
    ahead = workers + data.prefetch if workers else 1
    on_host = torch.device(device).type == "cpu"
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
                counts = replace(counts, unreadable=counts.unreadable + 1)
                _pass_over(manifest, row, found, counts.unreadable, data.bad_clip_limit)
            elif found.cached:
                counts = replace(counts, cached=counts.cached + 1)
            else:
                codec.take(contents[0], bucket_of[row], row, found)
                counts = replace(counts, computed=counts.computed + 1)
            if progress is not None:
                progress(counts)
    finally:
        feed.close()
    arena.close()
    return counts


def _pass_over(manifest: Manifest, row: int, reason: str, bad: int, limit: int) -> None:
    path = manifest[row].path
    _log.warning("clip %s (row %d) is passed over: %s", path, row, reason)
    if bad > limit:
        raise UserError(
            f"{bad} clips cannot be read, more than data.bad_clip_limit={limit}; the last is "
            f"{path}: {reason}"
        )
