"""3D convolutions with output or input channels divided over the ranks of a group.

Between an `OutputSplitConv` and an `InputSplitConv` every rank holds its own channels, and
channel-wise operations (activations, depthwise convolutions) run on them unchanged. The pair needs
one all-reduce forward and one backward.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vidgen.runtime.parallel.split import join_channels, same_input, sum_parts


class OutputSplitConv(nn.Module):
    """This rank's output channels, from an input that all ranks have.

    `rows` are the indices of the output channels this rank computes; `joined` gathers all ranks'
    channels, which must then be equal contiguous parts in rank order.
    """

    def __init__(
        self, whole: nn.Conv3d, group: dist.ProcessGroup, rows: Tensor, *, joined: bool = False
    ) -> None:
        super().__init__()
        self.group, self.joined = group, joined
        self.conv = _cut(whole, rows, slice(None))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(same_input(x, self.group))
        return join_channels(out, self.group) if self.joined else out


class InputSplitConv(nn.Module):
    """A convolution over this rank's input channels, summed over the ranks."""

    def __init__(self, whole: nn.Conv3d, group: dist.ProcessGroup, columns: Tensor) -> None:
        super().__init__()
        self.group = group
        self.conv = _cut(whole, slice(None), columns)
        self.bias, self.conv.bias = (
            self.conv.bias,
            None,
        )  # the bias is added once, not by every rank

    def forward(self, x: Tensor) -> Tensor:
        total = sum_parts(self.conv(x), self.group)
        return total if self.bias is None else total + self.bias.view(1, -1, 1, 1, 1)


def grouped(whole: nn.Conv3d, rows: Tensor) -> nn.Conv3d:
    """The groups of a grouped convolution with these output channels; needs no communication."""
    return _cut(whole, rows, slice(None), groups=len(rows) * whole.groups // whole.out_channels)


def _cut(
    whole: nn.Conv3d, rows: Tensor | slice, columns: Tensor | slice, groups: int = 1
) -> nn.Conv3d:
    weight = whole.weight.detach()[rows][:, columns].clone()
    part = type(whole)(
        weight.shape[1] * groups,
        weight.shape[0],
        whole.kernel_size,  # type: ignore[arg-type]
        whole.stride,  # type: ignore[arg-type]
        whole.padding,  # type: ignore[arg-type]
        groups=groups,
        bias=False,
        device="meta",
    )
    part.weight = nn.Parameter(weight, requires_grad=whole.weight.requires_grad)
    if whole.bias is not None:
        part.bias = nn.Parameter(
            whole.bias.detach()[rows].clone(), requires_grad=whole.bias.requires_grad
        )
    return part


def own_part(channels: int, group: dist.ProcessGroup, what: str) -> Tensor:
    """Indices of this rank's equal, contiguous part of the channels."""
    ways, rank = group.size(), group.rank()
    if channels % ways:
        raise ValueError(f"{what}: {channels} channels do not divide over {ways} ranks")
    size = channels // ways
    return torch.arange(rank * size, (rank + 1) * size)
