"""Weights that make the Video DC-AE start as a linear codec fitted to a few clips.

From random weights a small autoencoder spends its first thousand steps on what principal components
give at once. Each halving keeps the strongest components of the 2 x 2 x 2 positions it gathers; the
decoder is the transpose; residual blocks begin close to the identity.
"""

import torch
from torch import Tensor, nn

from vidgen.models.video_dcae.layers import (
    Downsample,
    Project,
    ResBlock,
    ShuffleUpsample,
    average_channels,
    pixels_to_channels,
    repeat_channels,
    space_to_channels,
)
from vidgen.models.video_dcae.model import VideoDCAE

STEADY = 16.0  # a constant channel that makes the last norm's scale nearly one
OFFSET = 2.0  # lifts pixels above the last ReLU
RESIDUAL = 0.02  # weight of the residual blocks' norms
NOISE = 0.02  # what is left of the random weights of the other convolutions


@torch.no_grad()
def start_linear(model: VideoDCAE, video_BCTHW: Tensor) -> None:
    """Fit to clips in [-1, 1]; needs `upsample: shuffle`, and frames halved at every stage."""
    config = model.config
    if config.upsample != "shuffle" or not all(config.down_frames):
        raise ValueError("a linear start needs upsample: shuffle and three stages")
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv3d)):
        conv.weight.mul_(NOISE)
        if conv.bias is not None:
            conv.bias.zero_()
    for block in (m for m in model.modules() if isinstance(m, ResBlock)):
        for conv in (block.conv1, block.conv2):
            conv.weight.div_(NOISE)
        block.norm.weight.fill_(RESIDUAL)
    x = pixels_to_channels(video_BCTHW, model.encoder.patch)
    colours = x.shape[1]
    eye = torch.eye(config.widths[0], colours)
    _centre(model.encoder.project_in, eye)
    x = _apply(eye, x)
    bases = []
    for stage in range(config.stages - 1):
        gathered = space_to_channels(x, True)
        basis = _components(gathered, config.widths[stage + 1])
        bases.append(basis)
        down = model.encoder.stages[stage].down
        assert isinstance(down, Downsample)
        _gather(down, basis / 8**0.5)
        x = _apply(basis / 8**0.5, gathered)
    last = _components(x, config.latent_channels)
    latent = _apply(last, x)
    scale = float(latent.std())
    _project(model.encoder.project_out, last / scale)
    _project(model.decoder.project_in, last.T * scale)
    for stage in reversed(range(config.stages - 1)):
        up = model.decoder.stages[stage].up
        assert isinstance(up, ShuffleUpsample)
        weight = bases[stage].T * 8**0.5
        shortcut = repeat_channels(_unit(weight.shape[1]), weight.shape[0])[..., 0, 0, 0].T
        _centre(up.conv, weight - shortcut)
    first = model.decoder.stages[0].up
    assert isinstance(first, ShuffleUpsample)
    assert first.conv.bias is not None
    steady = first.conv.bias.view(config.widths[0], 8)
    steady[-1] = STEADY
    norm, width = model.decoder.norm_out, config.widths[0]
    norm.weight.fill_(STEADY / width**0.5)
    norm.bias.fill_(OFFSET)
    norm.weight[-1] = 0.0
    out = model.decoder.project_out
    _centre(out, eye.T)
    assert out.bias is not None
    out.bias.fill_(-OFFSET)


def _components(x_BCTHW: Tensor, count: int) -> Tensor:
    """The strongest directions (count, C) of the channels, about zero: there is no mean to keep."""
    rows = x_BCTHW.transpose(0, 1).flatten(1).double()
    _, vectors = torch.linalg.eigh(rows @ rows.T)
    basis = vectors.flip(1)[:, :count].T
    sign = torch.sign(basis.gather(1, basis.abs().argmax(1, keepdim=True)))
    return (basis * sign).float()


def _apply(weight: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("oc,bcthw->bothw", weight, x)


def _unit(channels: int) -> Tensor:
    return torch.eye(channels).view(channels, channels, 1, 1, 1)


def _centre(conv: nn.Conv3d, weight: Tensor) -> None:
    """Add a matrix at the kernel's centre, in place of what is there."""
    middle = conv.kernel_size[0] // 2
    conv.weight[:, :, middle, middle, middle] = weight


def _project(layer: Project, weight: Tensor) -> None:
    fewer = weight.shape[0] < weight.shape[1]
    shortcut = (average_channels if fewer else repeat_channels)(
        _unit(weight.shape[1]), weight.shape[0]
    )
    _centre(layer.conv, weight - shortcut[..., 0, 0, 0].T)


def _gather(layer: Downsample, weight: Tensor) -> None:
    """`weight` (outputs, inputs * 8) of what `space_to_channels` gathers: taps 1 and 2."""
    shortcut = average_channels(_unit(weight.shape[1]), layer.outputs)[..., 0, 0, 0].T
    taps = (weight - shortcut).view(layer.outputs, -1, 2, 2, 2)
    layer.conv.weight[:, :, 1:, 1:, 1:] = taps
