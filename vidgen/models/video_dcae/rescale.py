"""A trained autoencoder's latents on another scale, with the same reconstructions."""

import torch
from torch import Tensor

from vidgen.models.video_dcae.layers import Project, average_channels, repeat_channels
from vidgen.models.video_dcae.model import VideoDCAE


@torch.no_grad()
def rescale_latents(model: VideoDCAE, scale_C: Tensor) -> None:
    """Multiply each latent channel by its scale, in the weights on both sides of it.

    Training on reconstruction alone leaves most channels far below the strongest ones, and a
    generator would learn them last.
    """
    _scale(model.encoder.project_out, scale_C, outputs=True)
    _scale(model.decoder.project_in, 1 / scale_C, outputs=False)


def balanced(std_C: Tensor, power: float = 0.5) -> Tensor:
    """Scales that bring deviations to their `power`, and all channels together to one."""
    after = std_C**power
    return after / after.square().mean().sqrt() / std_C


def _scale(layer: Project, scale_C: Tensor, *, outputs: bool) -> None:
    """The shortcut has no weights: what it lacks goes to the centre of the convolution."""
    conv = layer.conv
    unit = torch.eye(conv.in_channels).view(conv.in_channels, conv.in_channels, 1, 1, 1)
    fewer = conv.out_channels < conv.in_channels
    shortcut = (average_channels if fewer else repeat_channels)(unit, conv.out_channels)
    weight = shortcut[..., 0, 0, 0].T  # (out, in)
    factor = scale_C[:, None] if outputs else scale_C[None, :]
    conv.weight.mul_(factor[..., None, None, None])
    middle = conv.kernel_size[0] // 2
    conv.weight[:, :, middle, middle, middle] += weight * (factor - 1)
    if outputs and conv.bias is not None:
        conv.bias.mul_(scale_C)
