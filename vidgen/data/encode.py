"""A whole data set's latents and text features, computed once."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from vidgen.data.buckets import BucketTable, assign
from vidgen.data.codec import ClipCodec
from vidgen.data.config import DataConfig
from vidgen.data.latents import EncodeCounts, LatentCache, content_key, facts_of, settings_of
from vidgen.data.manifest import Manifest
from vidgen.data.video import BadClip, read_clip
from vidgen.errors import UserError
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.text.encoder import TextEncoder

_log = logging.getLogger(__name__)


def encode_manifest(
    data: DataConfig,
    autoencoder: Autoencoder,
    text: TextEncoder,
    out_dir: str | os.PathLike[str],
    *,
    encoders: Mapping[str, Any],
    device: torch.device | str,
    dtype: torch.dtype,
    suffix: bool = False,
    spatial_multiple: int = 16,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[EncodeCounts], None] | None = None,
) -> EncodeCounts:
    """Encode the middle window and centre crop of each clip that has a bucket.

    What is there already is kept, so a stopped run goes on where it was. `encoders` is the
    configuration (JSON's types) of both encoders: a cache made by others is refused. `dtype` is
    what is stored. Ranks share out the rows.
    """
    manifest = Manifest.open(data.manifest, check=data.check_files)
    table = BucketTable(
        data,
        temporal_step=autoencoder.compression[0],
        causal=autoencoder.causal,
        spatial_multiple=spatial_multiple,
    )
    assignment = assign(table, manifest, None)
    rows = (assignment.bucket_of_row >= 0).nonzero()[0][rank::world].tolist()
    if not rows and rank == 0:
        why = "; ".join(f"{count} {reason}" for reason, count in assignment.left_out.items())
        raise UserError(f"no clip of {manifest.path} has a bucket: {why}. Change data.buckets")
    facts = facts_of(autoencoder, text)
    cache = LatentCache(out_dir, settings_of(encoders, facts, dtype, suffix))
    codec = ClipCodec(cache, autoencoder, text, data, suffix=suffix, device=device, dtype=dtype)
    counts = EncodeCounts(len(rows))
    for row in rows:
        clip, bucket = manifest[row], table.buckets[assignment.bucket_of_row[row]]
        try:
            fields = codec.fields(clip, bucket)
            if cache.get(content_key(fields)) is not None:
                counts = replace(counts, cached=counts.cached + 1)
            else:
                request = codec.request(clip, fields)
                pixels_THWC = read_clip(
                    request.path, request.frame_indices, size=request.size, expect=request.expect
                )
                codec.encode(torch.from_numpy(pixels_THWC), row, fields)
                counts = replace(counts, computed=counts.computed + 1)
        except (BadClip, FileNotFoundError) as error:
            _log.warning("clip %s (row %d) is passed over: %s", clip.path, row, error)
            counts = replace(counts, unreadable=counts.unreadable + 1)
            if counts.unreadable > data.bad_clip_limit:
                raise UserError(
                    f"{counts.unreadable} clips cannot be read, more than data.bad_clip_limit="
                    f"{data.bad_clip_limit}; the last is {clip.path}: {error}"
                ) from error
        if progress is not None:
            progress(counts)
    return counts
