"""The encoders of a run, and the cache that stands in for them."""

from functools import cache

import torch
import torch.distributed as dist

from vidgen.config import to_dict
from vidgen.data.cache.codec import ClipCodec
from vidgen.data.cache.latents import LatentCache, facts_of, read_settings, settings_of
from vidgen.data.cache.lazy import LateAutoencoder, LateText
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.build import build_autoencoder, build_text
from vidgen.models.text.encoder import TextEncoder
from vidgen.recipe.schema import Recipe


def build_encoders(
    recipe: Recipe, device: torch.device, dtype: torch.dtype
) -> tuple[Autoencoder, TextEncoder, ClipCodec | None]:
    """With `data.latents` they are built when a clip is met that the cache lacks."""

    @cache
    def autoencoder() -> Autoencoder:
        return build_autoencoder(recipe.autoencoder, device, dtype)

    @cache
    def text() -> TextEncoder:
        return build_text(recipe.text, device, dtype)

    latents = recipe.data.latents
    if latents is None:
        return autoencoder(), text(), None
    made_by = read_settings(latents.folder)
    facts = made_by.get("facts") if made_by else None
    if facts is None:
        facts = facts_of(autoencoder(), text())
    encoders = {"autoencoder": to_dict(recipe.autoencoder), "text": to_dict(recipe.text)}
    kept = LatentCache(
        latents.folder,
        settings_of(encoders, facts, dtype, recipe.conditions.suffix),
        rolling_bytes=None if latents.rolling_gb is None else int(latents.rolling_gb * 1e9),
        ranks=dist.get_world_size() if dist.is_initialized() else 1,
    )
    late_autoencoder = LateAutoencoder(facts, autoencoder)
    late_text = LateText(facts, text, kept)
    weights = recipe.conditions.weights if recipe.model.cond_embed else {}
    codec = ClipCodec(
        kept,
        late_autoencoder,
        late_text,
        recipe.data,
        suffix=recipe.conditions.suffix,
        device=device,
        dtype=dtype,
        conditions=[name for name, weight in weights.items() if weight],
    )
    return late_autoencoder, late_text, codec
