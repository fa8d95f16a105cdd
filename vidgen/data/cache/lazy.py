"""Encoders that are built when they are first needed: with a full cache, never."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from vidgen.data.cache.latents import LatentCache, LatentEntry, content_key
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.text.encoder import TextEncoder, TextFeatures

Part = TypeVar("Part")


class LateAutoencoder:
    """`facts` is what the cache's settings say of it."""

    def __init__(self, facts: Mapping[str, Any], build: Callable[[], Autoencoder]) -> None:
        self.latent_channels: int = facts["latent_channels"]
        frames, rows, columns = facts["compression"]
        self.compression: tuple[int, int, int] = (frames, rows, columns)
        self.causal: bool = facts["causal"]
        self._late = _Late(build)

    def encode(self, video_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor:
        return self._late.now().encode(video_BCTHW, seeds)

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        return self._late.now().decode(latent_BCTHW)


class LateText:
    """The empty caption, which every run needs, is in the cache too."""

    def __init__(
        self, facts: Mapping[str, Any], build: Callable[[], TextEncoder], cache: LatentCache
    ) -> None:
        self.length: int = facts["length"]
        self.token_width: int = facts["token_width"]
        self.pooled_width: int = facts["pooled_width"]
        self._late, self._cache = _Late(build), cache

    def encode(self, captions: list[str]) -> TextFeatures:
        if captions != [""]:
            return self._late.now().encode(captions)
        key = content_key({"text": ""})
        entry = self._cache.get(key)
        if entry is None:
            features = self._late.now().encode([""])
            nothing = features.pooled_BD.new_empty(0)
            tokens, pooled = features.tokens_BLD[0], features.pooled_BD[0]
            self._cache.put(key, LatentEntry(nothing, tokens, pooled, {"text": ""}))
            return features
        return TextFeatures(entry.tokens_LD[None], entry.pooled_D[None])


class _Late(Generic[Part]):
    """Built once, by whichever thread needs it first, and ready for all of them."""

    def __init__(self, build: Callable[[], Part]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._built: Part | None = None

    def now(self) -> Part:
        with self._lock:
            if self._built is None:
                self._built = self._build()
                if torch.cuda.is_initialized():
                    torch.cuda.synchronize()  # another thread uses it on another stream
            return self._built
