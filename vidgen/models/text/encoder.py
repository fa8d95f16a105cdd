"""The text encoder interface: implemented by the built-in one, and by T5 with CLIP."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class TextFeatures:
    tokens_BLD: Tensor  # one feature per token; L is the encoder's fixed length
    pooled_BD: Tensor  # one vector per caption


class TextEncoder(Protocol):
    length: int  # L
    token_width: int  # D of tokens: the model's context_in_dim
    pooled_width: int  # D of pooled: the model's vec_in_dim

    def encode(self, captions: list[str]) -> TextFeatures:
        """Encode captions; the empty one is the null condition of classifier-free guidance."""
        ...
