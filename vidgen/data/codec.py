"""What an entry of the latent cache is made of, and how a clip is made into one."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidgen.data.buckets import Bucket, frame_interval
from vidgen.data.config import DataConfig
from vidgen.data.entries import Layout
from vidgen.data.latents import TENSORS, LatentCache, LatentEntry, content_key
from vidgen.data.manifest import Clip
from vidgen.data.video import ClipRequest
from vidgen.diffusion.conditions import caption
from vidgen.errors import UserError
from vidgen.models.autoencoder import Autoencoder, latent_grid
from vidgen.models.text.encoder import TextEncoder
from vidgen.runtime import ops

_log = logging.getLogger(__name__)
_DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


class ClipCodec:
    """Clips to entries: the middle window and centre crop of each, with its caption's features."""

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
    ) -> None:
        """`dtype` is what is stored. `suffix`: captions end in frame rate and motion score."""
        if data.crop != "center" or data.flip:
            raise UserError(
                "latents are of centre crops, not mirrored; found "
                f"data.crop={data.crop}, data.flip={str(data.flip).lower()}: set data.crop=center "
                "data.flip=false"
            )
        self.cache = cache
        self._autoencoder, self._text = autoencoder, text
        self._root, self._fps_max = Path(data.manifest).parent, data.fps_max
        self._suffix, self._device, self._dtype = suffix, torch.device(device), dtype

    def fields(self, clip: Clip, bucket: Bucket) -> dict[str, Any]:
        """All that decides an entry, the cache's settings aside."""
        status = clip.path.stat()
        interval = int(frame_interval(np.array(clip.fps), self._fps_max))
        text = clip.text
        if self._suffix:
            fps = None if np.isnan(clip.fps) else clip.fps / interval
            text = caption(text, fps, clip.motion)
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
        ae, text, dtype = self._autoencoder, self._text, _DTYPES[self._dtype]
        grid = latent_grid(ae, bucket.frames, bucket.height, bucket.width)
        shapes = (
            (ae.latent_channels, *grid),
            (text.length, text.token_width),
            (text.pooled_width,),
        )
        return Layout(
            tuple((name, dtype, shape) for name, shape in zip(TENSORS, shapes, strict=True))
        )

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
        )

    @torch.no_grad()
    def encode(self, pixels_THWC: Tensor, row: int, fields: dict[str, Any]) -> LatentEntry:
        """The entry, also written to the cache."""
        pixels_BTHWC = pixels_THWC[None].to(self._device)
        video = ops.video_to_input(pixels_BTHWC, 0.5, 0.5, torch.float32)
        features = self._text.encode([fields["text"]])
        entry = LatentEntry(
            self._autoencoder.encode(video, seeds=[row])[0].to(self._dtype),
            features.tokens_BLD[0].to(self._dtype),
            features.pooled_BD[0].to(self._dtype),
            fields,
        )
        self.cache.put(content_key(fields), entry)
        return entry

    def entry(self, contents: Tensor, bucket: Bucket, fields: dict[str, Any]) -> LatentEntry:
        """Of the bytes an `EntryRequest` read, wherever they are now."""
        layout = self.layout(bucket)
        latent, tokens, pooled = (
            contents[place].view(self._dtype).view(shape)
            for (_, _, shape), place in zip(layout.tensors, layout.places().values(), strict=True)
        )
        return LatentEntry(latent, tokens, pooled, fields)
