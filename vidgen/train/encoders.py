"""The encoders of a run, and the latent cache in front of them."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.distributed as dist

from vidgen.config import to_dict
from vidgen.data.cache.codec import ClipCodec
from vidgen.data.cache.latents import LatentCache, facts_of, read_settings, settings_of
from vidgen.data.cache.lazy import LazyAutoencoder, LazyText
from vidgen.diffusion.conditions import frames_needed
from vidgen.diffusion.config import ConditionName
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.build import build_autoencoder, build_text
from vidgen.models.text.encoder import TextEncoder
from vidgen.recipe.schema import Recipe
from vidgen.runtime.lazy import Lazy


@dataclass(frozen=True)
class Encoders:
    """`codec` reads and fills the latent cache; without `data.latents` there is none."""

    autoencoder: Autoencoder
    text: TextEncoder
    codec: ClipCodec | None = None


def build_encoders(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> Encoders:
    """With `data.latents` they are built only when a clip is missing from the cache."""
    autoencoder = Lazy(lambda: build_autoencoder(recipe.autoencoder, device, dtype))
    text = Lazy(lambda: build_text(recipe.text, device, dtype))
    latents = recipe.data.latents
    weights = recipe.conditions.weights if recipe.model.cond_embed else {}
    conditions = [name for name, weight in weights.items() if weight]
    if latents is None:
        check_conditions(conditions, autoencoder.get())
        return Encoders(autoencoder.get(), text.get())
    made_by = read_settings(latents.folder)
    facts = made_by.get("facts") if made_by else None
    if facts is None:
        facts = facts_of(autoencoder.get(), text.get())
    encoders = {"autoencoder": to_dict(recipe.autoencoder), "text": to_dict(recipe.text)}
    cache = LatentCache(
        latents.folder,
        settings_of(encoders, facts, dtype, recipe.conditions.suffix),
        rolling_bytes=None if latents.rolling_gb is None else int(latents.rolling_gb * 1e9),
        ranks=dist.get_world_size() if dist.is_initialized() else 1,
    )
    lazy_autoencoder = LazyAutoencoder(facts, autoencoder)
    lazy_text = LazyText(facts, text, cache)
    check_conditions(conditions, lazy_autoencoder)
    codec = ClipCodec(
        cache,
        lazy_autoencoder,
        lazy_text,
        recipe.data,
        suffix=recipe.conditions.suffix,
        device=device,
        dtype=dtype,
        conditions=conditions,
    )
    return Encoders(lazy_autoencoder, lazy_text, codec)


def check_conditions(names: Collection[ConditionName], ae: Autoencoder) -> None:
    """Refuses a condition that no clip can be given with this autoencoder."""
    for name in names:
        frames_needed(name, ae)
