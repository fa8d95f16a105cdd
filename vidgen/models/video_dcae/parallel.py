"""Divides the channels inside every block of the Video DC-AE over ranks.

Each block needs one all-reduce: the first convolution splits its outputs, the last its inputs, and
the layers in between are channel-wise or head-wise. Convolutions that change the resolution split
their outputs and gather them. Norms are computed by every rank.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from vidgen.models.video_dcae.layers import (
    Downsample,
    GatedConv,
    LinearAttention,
    Project,
    ResBlock,
    Upsample,
)
from vidgen.models.video_dcae.model import VideoDCAE
from vidgen.runtime.parallel.conv import InputSplitConv, OutputSplitConv, grouped, own_part


def divide(model: VideoDCAE, group: dist.ProcessGroup) -> VideoDCAE:
    """Split a model, identical on every rank, over a group, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, ResBlock):
            _divide_res_block(module, group, name)
        elif isinstance(module, LinearAttention):
            _divide_attention(module, group, name)
        elif isinstance(module, GatedConv):
            _divide_gated(module, group, name)
        elif isinstance(module, Downsample | Upsample | Project):
            rows = own_part(module.conv.out_channels, group, f"{name}.conv")
            module.conv = OutputSplitConv(module.conv, group, rows, joined=True)  # type: ignore[assignment]
    return model


def _divide_res_block(block: ResBlock, group: dist.ProcessGroup, name: str) -> None:
    own = own_part(block.conv1.out_channels, group, f"{name}.conv1")
    block.conv1 = OutputSplitConv(block.conv1, group, own)  # type: ignore[assignment]
    block.conv2 = InputSplitConv(block.conv2, group, own)  # type: ignore[assignment]


def _divide_attention(layer: LinearAttention, group: dist.ProcessGroup, name: str) -> None:
    width, head = layer.proj.out_channels, layer.head_dim
    heads = own_part(width // head, group, f"{name}, heads")
    rows = _runs(heads, 3 * head)  # q, k and v of each head are adjacent
    columns = _runs(heads, head)
    layer.qkv = OutputSplitConv(layer.qkv, group, rows)  # type: ignore[assignment]
    layer.aggregate_near = grouped(layer.aggregate_near, rows)
    layer.aggregate_head = grouped(layer.aggregate_head, rows)
    both_scales = torch.cat([columns, width + columns])
    layer.proj = InputSplitConv(layer.proj, group, both_scales)  # type: ignore[assignment]


def _divide_gated(layer: GatedConv, group: dist.ProcessGroup, name: str) -> None:
    half = layer.inverted.out_channels // 2
    own = own_part(half, group, f"{name}.inverted")
    value_and_gate = torch.cat([own, half + own])
    layer.inverted = OutputSplitConv(layer.inverted, group, value_and_gate)  # type: ignore[assignment]
    layer.depth = grouped(layer.depth, value_and_gate)
    layer.point = InputSplitConv(layer.point, group, own)  # type: ignore[assignment]


def _runs(indices: Tensor, size: int) -> Tensor:
    return (indices[:, None] * size + torch.arange(size)).flatten()
