"""The encoders of a run, and the cache that stands in for them."""

import torch

from vidgen.config import to_dict
from vidgen.data.codec import ClipCodec
from vidgen.data.late import LateAutoencoder, LateText
from vidgen.data.latents import LatentCache, facts_of, read_settings, settings_of
from vidgen.errors import UserError
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.build import build_autoencoder, build_text
from vidgen.models.text.encoder import TextEncoder
from vidgen.train.config import Recipe


def build_encoders(
    recipe: Recipe, device: torch.device, dtype: torch.dtype
) -> tuple[Autoencoder, TextEncoder, ClipCodec | None]:
    """With `data.latents` they are built when a clip is met that the cache lacks."""

    def autoencoder() -> Autoencoder:
        return build_autoencoder(recipe.autoencoder, device, dtype)

    def text() -> TextEncoder:
        return build_text(recipe.text, device, dtype)

    folder = recipe.data.latents
    if folder is None:
        return autoencoder(), text(), None
    conditions = [n for n, weight in recipe.conditions.weights.items() if weight and n != "t2v"]
    if recipe.model.cond_embed and conditions:
        raise UserError(
            f"data.latents holds no given frames, which conditions.weights asks for "
            f"({', '.join(conditions)}); set their weights to 0 or data.latents=null"
        )
    made_by = read_settings(folder)
    facts = made_by.get("facts") if made_by else None
    if facts is None:
        facts = facts_of(autoencoder(), text())
    encoders = {"autoencoder": to_dict(recipe.autoencoder), "text": to_dict(recipe.text)}
    cache = LatentCache(folder, settings_of(encoders, facts, dtype, recipe.conditions.suffix))
    late_autoencoder = LateAutoencoder(facts, autoencoder)
    late_text = LateText(facts, text, cache)
    codec = ClipCodec(
        cache,
        late_autoencoder,
        late_text,
        recipe.data,
        suffix=recipe.conditions.suffix,
        device=device,
        dtype=dtype,
    )
    return late_autoencoder, late_text, codec
