"""Latents and text features computed once, one file a clip, for training without the encoders."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidgen.data.buckets import Bucket, BucketTable, assign, frame_interval
from vidgen.data.config import DataConfig
from vidgen.data.manifest import Clip, Manifest
from vidgen.data.video import BadClip, read_clip
from vidgen.errors import UserError
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.text.encoder import TextEncoder
from vidgen.runtime import ops

_log = logging.getLogger(__name__)
_VERSION = 1
_TENSORS = ("latent_CTHW", "tokens_LD", "pooled_D")


@dataclass(frozen=True)
class LatentEntry:
    latent_CTHW: Tensor
    tokens_LD: Tensor
    pooled_D: Tensor
    fields: dict[str, Any]  # what the key was made of


@dataclass(frozen=True)
class EncodeCounts:
    total: int  # clips of this rank
    cached: int = 0
    computed: int = 0
    unreadable: int = 0

    def __str__(self) -> str:
        bad = f" / unreadable {self.unreadable}" if self.unreadable else ""
        return f"cached {self.cached} / computed {self.computed}{bad}"


class LatentCache:
    """A folder whose `cache.json` says what made its entries; they are found by content keys."""

    def __init__(self, root: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        """Open or begin a cache; one made with other settings is refused, naming the field."""
        self.root = Path(root)
        mine = json.loads(json.dumps({"version": _VERSION, **settings}))
        path = self.root / "cache.json"
        if path.is_file():
            theirs = json.loads(path.read_text())
            for field, there, here in _differences(theirs, mine):
                raise UserError(
                    f"the cache {self.root} was made with {field}={there}, this run has {here}; "
                    "name another folder, or delete this one"
                )
        else:
            self.root.mkdir(parents=True, exist_ok=True)
            _write_whole(path, lambda partial: partial.write_text(json.dumps(mine, indent=1)))

    def path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> LatentEntry | None:
        """The entry; None where there is none, or (logged) where its file is damaged."""
        from safetensors import SafetensorError, safe_open

        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                fields = json.loads(file.metadata()["fields"])
                latent, tokens, pooled = (file.get_tensor(name) for name in _TENSORS)
                return LatentEntry(latent, tokens, pooled, fields)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            _log.warning("cache entry %s is damaged and counts as missing: %s", path, error)
            return None

    def put(self, key: str, entry: LatentEntry) -> None:
        """The file appears whole or not at all."""
        from safetensors.torch import save_file

        tensors = {
            name: getattr(entry, name).detach().cpu().clone(memory_format=torch.contiguous_format)
            for name in _TENSORS
        }
        metadata = {"fields": json.dumps(entry.fields)}
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, lambda partial: save_file(tensors, partial, metadata))


def entry_fields(clip: Clip, bucket: Bucket, root: Path, fps_max: float) -> dict[str, Any]:
    """All that decides an entry, the cache's settings aside; `root` is the manifest's folder."""
    status = clip.path.stat()
    interval = int(frame_interval(np.array(clip.fps), fps_max))
    return {
        "path": os.path.relpath(clip.path, root),
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "text": clip.text,
        "first_frame": (clip.num_frames - ((bucket.frames - 1) * interval + 1)) // 2,
        "interval": interval,
        "frames": bucket.frames,
        "height": bucket.height,
        "width": bucket.width,
    }


def content_key(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]


@torch.no_grad()
def encode_manifest(
    data: DataConfig,
    autoencoder: Autoencoder,
    text: TextEncoder,
    out_dir: str | os.PathLike[str],
    *,
    encoders: Mapping[str, Any],
    device: torch.device | str,
    dtype: torch.dtype,
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
    cache = LatentCache(out_dir, {"encoders": dict(encoders), "dtype": str(dtype)})
    counts = EncodeCounts(len(rows))
    for row in rows:
        clip, bucket = manifest[row], table.buckets[assignment.bucket_of_row[row]]
        try:
            fields = entry_fields(clip, bucket, manifest.path.parent, data.fps_max)
            key = content_key(fields)
            if cache.get(key) is not None:
                counts = replace(counts, cached=counts.cached + 1)
            else:
                video = _video(clip, fields, torch.device(device))
                features = text.encode([clip.text])
                entry = LatentEntry(
                    autoencoder.encode(video, seeds=[row])[0].to(dtype),
                    features.tokens_BLD[0].to(dtype),
                    features.pooled_BD[0].to(dtype),
                    fields,
                )
                cache.put(key, entry)
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


def _video(clip: Clip, fields: Mapping[str, Any], device: torch.device) -> Tensor:
    """(1, 3, T, H, W) in [-1, 1]."""
    first, step, frames = fields["first_frame"], fields["interval"], fields["frames"]
    pixels_THWC = read_clip(
        clip.path,
        range(first, first + (frames - 1) * step + 1, step),
        size=(fields["height"], fields["width"]),
        expect=(clip.height, clip.width),
    )
    pixels_BTHWC = torch.from_numpy(pixels_THWC)[None].to(device)
    return ops.video_to_input(pixels_BTHWC, 0.5, 0.5, torch.float32)


def _differences(there: Any, here: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(field, its value there, its value here) wherever two JSON values differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        found = []
        for key in {**there, **here}:
            inner = f"{name}.{key}" if name else key
            found += _differences(there.get(key), here.get(key), inner)
        return found
    return [] if there == here else [(name, there, here)]


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
