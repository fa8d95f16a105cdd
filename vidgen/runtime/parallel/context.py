"""Context parallelism: a group of ranks computes one sample, each a part of its tokens.

Training and sampling split tokens here.

Shapes: L tokens of the whole sequence, text first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from vidgen.errors import UserError
from vidgen.runtime.parallel import flight_recorder
from vidgen.runtime.parallel.p2p import as_bytes
from vidgen.runtime.parallel.ring import ring_attention
from vidgen.runtime.parallel.ulysses import (
    ring_of_ulysses_attention,
    shares,
    ulysses_attention,
)


class RanksDisagree(UserError):
    """Ranks of a group were about to do different things."""


TextPlan = Literal["sharded", "replicated"]


@dataclass(frozen=True)
class Split:
    """Which tokens of [text, video] each rank of a group holds."""

    text: tuple[slice, ...]
    video: tuple[slice, ...]
    replicated: int  # text tokens that every rank holds

    @property
    def lengths(self) -> list[int]:
        """Each rank's tokens besides the replicated ones."""
        return [
            _length(text) + _length(video) - self.replicated
            for text, video in zip(self.text, self.video, strict=True)
        ]

    @property
    def video_lengths(self) -> list[int]:
        return [_length(part) for part in self.video]


def split_tokens(text: int, video: int, ranks: int, plan: TextPlan = "sharded") -> Split:
    """Contiguous parts in the order of ranks, none longer than another by more than one token.

    Sharded text lies with the first ranks, which hold less video.
    """
    if plan == "replicated":
        return Split((slice(0, text),) * ranks, _cut(shares(video, ranks), 0, video), text)
    lengths = shares(text + video, ranks)
    return Split(_cut(lengths, 0, text), _cut(lengths, text, video), 0)


def _cut(lengths: Sequence[int], offset: int, size: int) -> tuple[slice, ...]:
    """Consecutive parts of a sequence, as slices of the `size` tokens that begin at `offset`."""
    parts, begin = [], 0
    for length in lengths:
        low, high = (min(max(at - offset, 0), size) for at in (begin, begin + length))
        parts.append(slice(low, high))
        begin += length
    return tuple(parts)


def _length(part: slice) -> int:
    return int(part.stop - part.start)


class ContextGroup:
    """The ranks that compute one sample, and every way to arrange their attention.

    A degree is how many neighbours exchange heads (Ulysses); groups of that size form a ring.
    Degree 1 is a ring of single ranks, the group's size is Ulysses alone.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        grids: dict[int, tuple[dist.ProcessGroup, dist.ProcessGroup]],
    ) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._grids = grids  # degree: (ring, ulysses), where both have more than one rank

    @property
    def degrees(self) -> list[int]:
        return sorted({1, self.size, *self._grids})

    def grid(self, degree: int) -> tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]:
        """The groups of a ring and of an exchange of heads; None where it has one rank."""
        if degree in self._grids:
            return self._grids[degree]
        return (self.group, None) if degree == 1 else (None, self.group)

    def attention(self, split: Split, degree: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Attention over all tokens of the group by the parts of a split."""
        lengths, replicated = split.lengths, split.replicated

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if degree == 1:
                return ring_attention(
                    q, k, v, group=self.group, lengths=lengths, replicated=replicated
                )
            if degree == self.size:
                return ulysses_attention(
                    q, k, v, group=self.group, lengths=lengths, replicated=replicated
                )
            ring, ulysses = self._grids[degree]
            return ring_of_ulysses_attention(
                q, k, v, ring=ring, ulysses=ulysses, lengths=lengths, replicated=replicated
            )

        return attend

    def agree(self, what: str, value: Sequence[int]) -> None:
        """Raise, naming ranks, unless all ranks of the group have the same value.

        A collective with different shapes would hang or misread bytes.
        """
        flight_recorder.note(f"agreeing on {what}")
        mine = torch.tensor(value, dtype=torch.int64)  # on the CPU: a GPU is not waited for
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyone, mine, group=self.group)
        said = [tuple(each.tolist()) for each in everyone]
        usual = max(said, key=said.count)
        if odd := [rank for rank, each in enumerate(said) if each != usual]:
            names = dist.get_process_group_ranks(self.group)
            different = "; ".join(f"rank {names[rank]} has {said[rank]}" for rank in odd)
            step = flight_recorder.now().step
            raise RanksDisagree(
                f"step {step}: ranks of one context-parallel group differ in {what}: "
                f"{different}, the others {usual}; give them the same recipe, data and code"
            )

    def gather(self, part_BLD: Tensor, lengths: Sequence[int]) -> Tensor:
        """All ranks' parts in one tensor, for a loss that every rank computes alike.

        Each rank's loss is the same function of what is gathered, and gradients are averaged over
        ranks: a part's gradient is therefore that of the sum of the group's losses.
        """
        gathered: Tensor = _Gather.apply(part_BLD, tuple(lengths), self)
        return gathered

    def all_gather(self, part: Tensor, counts: Sequence[int]) -> Tensor:
        """Every rank's rows, `counts` of them each, in the order of ranks; no gradient."""
        flight_recorder.note("gather in the context group")
        most = max(counts)
        padded = part.new_zeros(most, *part.shape[1:])
        padded[: part.shape[0]] = part
        everyone = [torch.empty_like(padded) for _ in counts]
        dist.all_gather([as_bytes(x) for x in everyone], as_bytes(padded), group=self.group)
        return torch.cat([rows[:count] for rows, count in zip(everyone, counts, strict=True)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, part_BLD: Tensor, lengths: tuple[int, ...], group: ContextGroup
    ) -> Tensor:
        begin = sum(lengths[: group.rank])
        ctx.mine, ctx.size = slice(begin, begin + lengths[group.rank]), group.size
        rows = part_BLD.transpose(0, 1).contiguous()
        return group.all_gather(rows, lengths).transpose(0, 1).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0][:, ctx.mine] * ctx.size, None, None
