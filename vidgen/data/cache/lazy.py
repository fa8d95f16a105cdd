"""Encoders built when they are first needed: with a full latent cache, never."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vidgen.data.cache.latents import LatentCache, LatentEntry
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.text.encoder import TextEncoder, TextFeatures
from vidgen.runtime.content_key import content_key
from vidgen.runtime.lazy import Lazy


class LazyAutoencoder:
    """`facts` are the sizes that the cache's settings record."""

    def __init__(self, facts: Mapping[str, Any], autoencoder: Lazy[Autoencoder]) -> None:
        self.latent_channels: int = facts["latent_channels"]
        frames, rows, columns = facts["compression"]
        self.compression: tuple[int, int, int] = (frames, rows, columns)
        self.causal: bool = facts["causal"]
        self._autoencoder = autoencoder

    def encode(self, video_BCTHW: Tensor, seeds: Sequence[int]) -> Tensor:
        return self._autoencoder.get().encode(video_BCTHW, seeds)

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        return self._autoencoder.get().decode(latent_BCTHW)


class LazyText:
    """The empty caption, which every run needs, is in the cache too."""

    def __init__(
        self, facts: Mapping[str, Any], text: Lazy[TextEncoder], cache: LatentCache
    ) -> None:
        self.length: int = facts["length"]
        self.token_width: int = facts["token_width"]
        self.pooled_width: int = facts["pooled_width"]
        self._text, self._cache = text, cache

    def encode(self, captions: list[str]) -> TextFeatures:
        if captions != [""]:
            return self._text.get().encode(captions)
        key = content_key({"text": ""})
        entry = self._cache.get(key)
        if entry is None:
            features = self._text.get().encode([""])
            nothing = features.pooled_BD.new_empty(0)
            tokens, pooled = features.tokens_BLD[0], features.pooled_BD[0]
            self._cache.put(key, LatentEntry(nothing, tokens, pooled, {"text": ""}))
            return features
        return TextFeatures(entry.tokens_LD[None], entry.pooled_D[None])
