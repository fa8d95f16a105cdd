"""Captures the video tokens that leave one block during a forward pass."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from vidgen.models.mmdit.model import Context, Part, Seams, Stream


class Capture:
    """Run the model with `seams`, then `take` the block's output. The forward pass is unchanged.

    Nothing is captured in a forward pass without gradients.
    """

    def __init__(self, seams: Seams, layer: int) -> None:
        """`layer` counts from 1, dual-stream blocks first."""
        self._inner, self._layer = seams, layer
        self._text = 0
        self._taken: Tensor | None = None
        self._part: Part | None = None
        self.seams = replace(seams, run_block=self._run_block, split=self._split)

    def take(self) -> tuple[Tensor, Part]:
        """This process's tokens (B, v, D) of the last forward pass, and which ones they are."""
        taken, part = self._taken, self._part
        # Released once taken, to free its memory before the next pass.
        self._taken = self._part = None
        if taken is None or part is None:
            raise ValueError(f"no forward pass has reached layer {self._layer} since the last take")
        return taken, part

    def _split(self, batch: int, text: int, video: int) -> Part:
        self._part = self._inner.split(batch, text, video)
        return self._part

    def _run_block(self, index: int, block: nn.Module, stream: Stream, context: Context) -> Stream:
        if len(stream) == 2:
            self._text = stream[0].shape[1]
        out = self._inner.run_block(index, block, stream, context)
        if index + 1 == self._layer and torch.is_grad_enabled():
            self._taken = out[1] if len(out) == 2 else out[0][:, self._text :]
        return out
