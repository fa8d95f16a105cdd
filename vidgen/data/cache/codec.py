"""What an entry of the latent cache is made of, and how a clip is made into one."""

import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidgen.data.cache.entries import ABSENT, EntryRequest, Layout
from vidgen.data.cache.latents import TENSORS, LatentCache, LatentEntry
from vidgen.data.config import DataConfig
from vidgen.data.index.buckets import Bucket, frame_interval
from vidgen.data.index.manifest import Clip
from vidgen.data.read.video import ClipRequest
from vidgen.diffusion.conditions import Piece, all_pieces, caption, cut_piece, piece_name
from vidgen.diffusion.config import ConditionName
from vidgen.errors import UserError
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.geometry import Geometry
from vidgen.models.text.encoder import TextEncoder
from vidgen.runtime import dtypes, ops
from vidgen.runtime.content_key import content_key
from vidgen.runtime.loader.feed import Filling
from vidgen.runtime.loader.processes import Lost
from vidgen.runtime.work import log_damage


@dataclass(frozen=True)
class Found:
    """What was read of a clip: its entry, or its pixels, of which one is to be made."""

    fields: dict[str, Any]  # of the entry
    cached: bool


class ClipCodec:
    """Clips to entries: the middle window and centre crop of each, with its caption's features and
    what conditions may be given of it."""

    def __init__(
        self,
        cache: LatentCache,
        autoencoder: Autoencoder,
        text: TextEncoder,
        data: DataConfig,
        *,
        suffix: bool,
        device: torch.device | str,
        dtype: torch.dtype,
        conditions: Collection[ConditionName] = (),
    ) -> None:
        """`dtype` is what is stored. `suffix`: captions end in frame rate and motion score.
        `conditions`: those that entries must serve."""
        if data.crop != "center" or data.flip:
            raise UserError(
                "latents are of centre crops, not mirrored; found "
                f"data.crop={data.crop}, data.flip={str(data.flip).lower()}: set data.crop=center "
                "data.flip=false"
            )
        self.cache = cache
        self._autoencoder, self._text = autoencoder, text
        self._root, self._fps_max = Path(data.manifest).parent, data.fps_max
        self._decoder = data.decoder
        self._suffix, self._device, self._dtype = suffix, torch.device(device), dtype
        self._conditions = conditions

    def fields(self, clip: Clip, bucket: Bucket) -> dict[str, Any]:
        """All that decides an entry, the cache's settings aside."""
        status = clip.path.stat()
        interval = int(frame_interval(np.array(clip.fps), self._fps_max))
        text = clip.text
        if self._suffix:
            text = caption(text, bucket.frames, clip.fps / interval, clip.motion)
        return {
            "path": os.path.relpath(clip.path, self._root),
            "bytes": status.st_size,
            "modified_ns": status.st_mtime_ns,
            "text": text,
            "first_frame": (clip.num_frames - ((bucket.frames - 1) * interval + 1)) // 2,
            "interval": interval,
            "frames": bucket.frames,
            "height": bucket.height,
            "width": bucket.width,
        }

    def layout(self, bucket: Bucket) -> Layout:
        ae, text, dtype = self._autoencoder, self._text, dtypes.names()[self._dtype]
        geometry = Geometry.of(ae)
        grid = geometry.latent_grid(bucket.frames, bucket.height, bucket.width)
        shapes = (
            (ae.latent_channels, *grid),
            (text.length, text.token_width),
            (text.pooled_width,),
        )
        given = tuple(
            (
                piece_name(piece, bucket.frames),
                dtype,
                (ae.latent_channels, piece.end - piece.begin, *grid[1:]),
            )
            for piece in self._pieces(bucket.frames)
        )
        return Layout(
            tuple((name, dtype, shape) for name, shape in zip(TENSORS, shapes, strict=True)) + given
        )

    def _pieces(self, frames: int) -> list[Piece]:
        return all_pieces(self._conditions, frames, self._autoencoder)

    def read(self, clip: Clip, bucket: Bucket) -> Filling[Found | str]:
        """Fills a slot with the clip's entry or, where there is none, its pixels; returns why it
        cannot be read otherwise."""
        try:
            fields = self.fields(clip, bucket)
        except OSError as error:
            return f"cannot be read: {error}"
        path = self.cache.path(content_key(fields))
        rolling = self.cache.rolling_bytes is not None
        if path.is_file():  # or a worker would be asked twice for most clips of a new folder
            answer = yield EntryRequest(str(path), self.layout(bucket), touch=rolling)
            if answer is None:
                return Found(fields, cached=True)
            if answer != ABSENT:
                log_damage(path, _reason(answer))
        answer = yield self.request(clip, fields)
        return Found(fields, cached=False) if answer is None else _reason(answer)

    def request(self, clip: Clip, fields: dict[str, Any]) -> ClipRequest:
        """The pixels an entry is made of."""
        first, step, frames = fields["first_frame"], fields["interval"], fields["frames"]
        return ClipRequest(
            path=str(clip.path),
            frame_indices=range(first, first + (frames - 1) * step + 1, step),
            size=(fields["height"], fields["width"]),
            crop_at=(0.5, 0.5),
            flip=False,
            expect=(clip.height, clip.width),
            decoder=self._decoder,
        )

    def take(self, contents: Tensor, bucket: Bucket, row: int, found: Found) -> LatentEntry:
        """Of the bytes that `read` has filled, wherever they are now."""
        if found.cached:
            return self.entry(contents, bucket, found.fields)
        video = (bucket.frames, bucket.height, bucket.width, 3)
        return self.encode(contents[: math.prod(video)].view(video), row, found.fields)

    @torch.no_grad()
    def encode(self, pixels_THWC: Tensor, row: int, fields: dict[str, Any]) -> LatentEntry:
        """The entry, also written to the cache."""
        pixels_BTHWC = pixels_THWC[None].to(self._device)
        video = ops.video_to_input(pixels_BTHWC, 0.5, 0.5, torch.float32)
        features, frames = self._text.encode([fields["text"]]), video.shape[2]

        def latent(part_CTHW: Tensor) -> Tensor:
            return self._autoencoder.encode(part_CTHW[None], seeds=[row])[0].to(self._dtype)

        entry = LatentEntry(
            latent(video[0]),
            features.tokens_BLD[0].to(self._dtype),
            features.pooled_BD[0].to(self._dtype),
            fields,
            {
                piece_name(piece, frames): latent(cut_piece(piece, video[0]))
                for piece in self._pieces(frames)
            },
        )
        self.cache.put(content_key(fields), entry)
        return entry

    def entry(self, contents: Tensor, bucket: Bucket, fields: dict[str, Any]) -> LatentEntry:
        """Of the bytes an `EntryRequest` read, wherever they are now."""
        layout = self.layout(bucket)
        tensors = {
            name: contents[place].view(self._dtype).view(shape)
            for (name, _, shape), place in zip(
                layout.tensors, layout.places().values(), strict=True
            )
        }
        latent, tokens, pooled = (tensors.pop(name) for name in TENSORS)
        return LatentEntry(latent, tokens, pooled, fields, tensors)


def _reason(answer: str | Lost) -> str:
    return answer.reason if isinstance(answer, Lost) else answer
