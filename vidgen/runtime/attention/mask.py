"""Attention masks: blocks of the score matrix, and key lengths per sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

Q_BLOCK = 128
K_BLOCK = 64


@dataclass(frozen=True)
class BlockMask:
    """A query attends to a key if its block is set and the key is within the sample's length.

    blocks: bool (B or 1, H or 1, ceil(Lq / 128), ceil(Lk / 64)); None means every block.
    key_lengths_B: int64 (B,), the number of valid keys; None means all.
    """

    blocks: Tensor | None = None
    key_lengths_B: Tensor | None = None

    @staticmethod
    def padding(key_lengths_B: Tensor) -> "BlockMask":
        return BlockMask(key_lengths_B=key_lengths_B)

    @staticmethod
    def joint(blocks: Tensor, text_length: int, key_lengths_B: Tensor | None = None) -> "BlockMask":
        """Blocks over a [text, video] sequence; rows and columns that touch text are made dense."""
        dense = blocks.clone()
        dense[..., : -(-text_length // Q_BLOCK), :] = True
        dense[..., : -(-text_length // K_BLOCK)] = True
        return BlockMask(dense, key_lengths_B)

    @property
    def kinds(self) -> frozenset[str]:
        present = {"block": self.blocks, "length": self.key_lengths_B}
        return frozenset(name for name, part in present.items() if part is not None)

    def check(self, batch: int, heads: int, q_length: int, k_length: int) -> None:
        if self.blocks is not None:
            rows, cols = -(-q_length // Q_BLOCK), -(-k_length // K_BLOCK)
            shape = tuple(self.blocks.shape)
            fits = len(shape) == 4 and shape[0] in (1, batch) and shape[1] in (1, heads)
            if not fits or shape[2:] != (rows, cols) or self.blocks.dtype != torch.bool:
                raise ValueError(
                    f"mask blocks {self.blocks.dtype} {shape}: expected bool "
                    f"({batch} or 1, {heads} or 1, {rows}, {cols}) for {q_length} x {k_length}"
                )
        if self.key_lengths_B is not None and self.key_lengths_B.shape != (batch,):
            raise ValueError(f"key lengths {tuple(self.key_lengths_B.shape)}: expected ({batch},)")

    def dense(self, q_length: int, k_length: int) -> Tensor:
        """bool (B or 1, H or 1, Lq or 1, Lk)."""
        allowed: Tensor | None = None
        if self.blocks is not None:
            rows = torch.arange(q_length, device=self.blocks.device) // Q_BLOCK
            cols = torch.arange(k_length, device=self.blocks.device) // K_BLOCK
            allowed = self.blocks[:, :, rows][:, :, :, cols]
        if self.key_lengths_B is not None:
            keys = torch.arange(k_length, device=self.key_lengths_B.device)
            exists = (keys < self.key_lengths_B[:, None])[:, None, None]
            allowed = exists if allowed is None else allowed & exists
        if allowed is None:
            allowed = torch.ones(1, 1, 1, k_length, dtype=torch.bool)
        return allowed
