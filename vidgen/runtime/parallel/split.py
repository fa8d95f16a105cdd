"""What ranks that divide a layer's channels exchange: their parts, summed or put together."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vidgen.runtime.parallel import flight_recorder


def same_input(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Nothing on the way in; the gradient is the sum of what each rank's outputs ask for."""
    same: Tensor = _SameInput.apply(x, group)
    return same


def sum_parts(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of the ranks' parts; each part's gradient is that of the sum."""
    total: Tensor = _Sum.apply(x, group)
    return total


def join_channels(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The ranks' channels (dim 1, equally many) side by side; each takes its own gradient back.

    Every rank must go on to compute the same with the whole, so that its gradient is the whole's.
    """
    whole: Tensor = _Join.apply(x, group)
    return whole


class _SameInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _summed(gradients[0], ctx.group), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.channels = group, x.shape[1]
        flight_recorder.note("join channels in the tensor-parallel group")
        parts = [
            torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(group.size())
        ]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        start = ctx.group.rank() * ctx.channels
        return gradients[0].narrow(1, start, ctx.channels), None


def _summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    flight_recorder.note("sum in the tensor-parallel group")
    total = x.contiguous().clone()
    if total.numel():  # a rank without tokens: none of the group has any
        dist.all_reduce(total, group=group)
    return total
