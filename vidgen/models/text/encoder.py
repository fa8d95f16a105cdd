"""The interface every text encoder has: the built-in one, and T5 with CLIP."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class TextFeatures:
    tokens_BLD: Tensor  # one feature a token; L is the encoder's fixed length
    pooled_BD: Tensor  # one vector a caption


class TextEncoder(Protocol):
    length: int  # L
    token_width: int  # D of tokens: the model's context_in_dim
    pooled_width: int  # D of pooled: the model's vec_in_dim

    def encode(self, captions: list[str]) -> TextFeatures:
        """The empty caption is the null condition of classifier-free guidance."""
        ...
