"""A text encoder without training or downloads: each word is a fixed random vector.

It replaces T5 and CLIP in the quickstart and the demo, so that the whole system runs at a small
size. It distinguishes words but has no notion of meaning. With `context` a token carries the words
before it, weighted by their distance, as an encoder with attention would: "circle" in "a small red
circle" then also says small and red.
"""

import hashlib
import re
from functools import lru_cache

import torch
from torch import Tensor, nn

from vidgen.errors import UserError
from vidgen.models.text.config import TextConfig
from vidgen.models.text.encoder import TextFeatures

WORD = re.compile(r"[^\W\d_]+|\d+")  # letters of any script, or digits


class BuiltinText(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.length = config.length
        self.token_width = config.token_width
        self.pooled_width = config.pooled_width
        self.context, self.ordered = config.context, config.ordered
        positions = torch.stack(
            [_vector(f"position {i}", self.token_width) for i in range(self.length)]
        )
        self.register_buffer("positions_LD", 0.5 * positions, persistent=False)

    positions_LD: Tensor

    def encode(self, captions: list[str]) -> TextFeatures:
        device = self.positions_LD.device
        sentences = [WORD.findall(text.lower()) for text in captions]
        for text, words in zip(captions, sentences, strict=True):
            if len(words) > self.length:
                raise UserError(
                    f"caption of {len(words)} words; the built-in text encoder takes at most "
                    f"{self.length} (text.length): {text[:60]!r}"
                )
        pad = _vector("padding", self.token_width)
        tokens = torch.stack(
            [
                torch.stack(
                    [self._token(words, i) for i in range(len(words))]
                    + [pad] * (self.length - len(words))
                )
                for words in sentences
            ]
        )
        pooled = torch.stack([self._pooled(words) for words in sentences])
        return TextFeatures(tokens.to(device) + self.positions_LD, pooled.to(device))

    def _token(self, words: list[str], at: int) -> Tensor:
        token = _vector(words[at], self.token_width)
        for back in range(1, min(self.context, at) + 1):
            token = token + _vector(f"{words[at - back]} {back} before", self.token_width)
        return token / (1 + self.context) ** 0.5 if self.context else token

    def _pooled(self, words: list[str]) -> Tensor:
        """The sum over words; dividing by sqrt(n) keeps unit variance, as they are independent."""
        total = sum((_vector(w, self.pooled_width) for w in words), torch.zeros(self.pooled_width))
        if self.ordered:
            for at, word in enumerate(words):
                total = total + _vector(f"{word} at {at}", self.pooled_width)
        return total / (max(1, len(words)) * (2 if self.ordered else 1)) ** 0.5


@lru_cache(maxsize=65536)
def _vector(word: str, width: int) -> Tensor:
    """A unit-variance Gaussian vector that depends only on the word."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little") >> 1
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))
