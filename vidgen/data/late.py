"""Encoders that are built when they are first needed: with a full cache, never."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from vidgen.data.latents import LatentCache, LatentEntry, content_key
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.text.encoder import TextEncoder, TextFeatures


class LateAutoencoder:
    """`facts` is what the cache's settings say of it."""

    def __init__(self, facts: Mapping[str, Any], build: Callable[[], Autoencoder]) -> None:
        self.latent_channels: int = facts["latent_channels"]
        frames, rows, columns = facts["compression"]
        self.compression: tuple[int, int, int] = (frames, rows, columns)
        self.causal: bool = facts["causal"]
        self._build = build
        self._built: Autoencoder | None = None

    def encode(self, video_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor:
        return self._now().encode(video_BCTHW, seeds)

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        return self._now().decode(latent_BCTHW)

    def _now(self) -> Autoencoder:
        if self._built is None:
            self._built = self._build()
        return self._built


class LateText:
    """The empty caption, which every run needs, is in the cache too."""

    def __init__(
        self, facts: Mapping[str, Any], build: Callable[[], TextEncoder], cache: LatentCache
    ) -> None:
        self.length: int = facts["length"]
        self.token_width: int = facts["token_width"]
        self.pooled_width: int = facts["pooled_width"]
        self._build, self._cache = build, cache
        self._built: TextEncoder | None = None

    def encode(self, captions: list[str]) -> TextFeatures:
        if captions != [""]:
            return self._now().encode(captions)
        key = content_key({"text": ""})
        entry = self._cache.get(key)
        if entry is None:
            features = self._now().encode([""])
            nothing = features.pooled_BD.new_empty(0)
            tokens, pooled = features.tokens_BLD[0], features.pooled_BD[0]
            self._cache.put(key, LatentEntry(nothing, tokens, pooled, {"text": ""}))
            return features
        return TextFeatures(entry.tokens_LD[None], entry.pooled_D[None])

    def _now(self) -> TextEncoder:
        if self._built is None:
            self._built = self._build()
        return self._built
