"""Reconstruction losses: L1, perceptual distance and adversarial loss."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Perceptual = Callable[[Tensor, Tensor], Tensor]  # images (N, 3, H, W) in [-1, 1] to (N,)


def l1(reconstruction: Tensor, video: Tensor) -> Tensor:
    return (reconstruction.float() - video.float()).abs().mean()


def perceptual_distance(
    distance: Perceptual, reconstruction: Tensor, video: Tensor, chunk: int = 16
) -> Tensor:
    """Mean over all frames of all clips, a few frames at a time."""
    pairs = (x.transpose(1, 2).flatten(0, 1).float() for x in (reconstruction, video))
    parts = [
        distance(*part).flatten()
        for part in zip(*(frames.split(chunk) for frames in pairs), strict=True)
    ]
    return torch.cat(parts).mean()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: real above 1, reconstructed below -1."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last: Tensor) -> Tensor:
    """The adversarial weight that equalises both gradient norms at the decoder's last layer."""
    pulls = (
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in (reconstruction_loss, adversarial_loss)
    )
    ours, theirs = pulls
    return (ours / (theirs + 1e-4)).clamp(0.0, 1e4).detach()
