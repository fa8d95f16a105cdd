"""Flow matching: x_t goes straight from data (t = 0) to noise (t = 1); its slope is learned."""

import math

import torch
from torch import Tensor

from vidgen.diffusion.config import FlowConfig

FLUX_SHIFT = ((256, 0.5), (4096, 1.15))  # (tokens a frame, mu) of FLUX.1-dev
LatentGrid = tuple[int, int, int]  # latent frames, rows, columns, before patching


def shift_alpha(config: FlowConfig, grid: LatentGrid) -> float:
    """How far timesteps are shifted towards noise: more for larger and longer videos."""
    if isinstance(config.shift, float):
        return config.shift
    frames, rows, columns = grid
    tokens = rows * columns // 4  # the rules count 2 x 2 patches whatever the model's patch is
    if config.shift == "proportional":
        return config.shift_at_reference * math.prod(grid) / math.prod(config.shift_reference)
    if config.shift == "flux":
        return math.exp(_line(FLUX_SHIFT, tokens))
    return _line((config.shift_low, config.shift_high), tokens) * math.sqrt(frames)


def _line(points: tuple[tuple[float, float], tuple[float, float]], x: float) -> float:
    """The value at `x` of the line through two points."""
    (x0, y0), (x1, y1) = points
    return y0 + (x - x0) * (y1 - y0) / (x1 - x0)


def time_dtype(config: FlowConfig) -> torch.dtype:
    """In which the model reads timesteps."""
    return torch.bfloat16 if config.round_t == "bf16" else torch.float32


def shift(t: Tensor, alpha: float) -> Tensor:
    return alpha * t / (1 + (alpha - 1) * t)


def sample_timestep(alpha: float, generator: torch.Generator) -> Tensor:
    """One t, logit-normal and then shifted; 0-d, fp32, on the generator's device."""
    normal = torch.randn((), generator=generator, device=generator.device)
    return shift(torch.sigmoid(normal), alpha)


def timesteps(steps: int, alpha: float) -> list[float]:
    """The `steps` + 1 times of a sampling run, from 1 to 0."""
    return shift(torch.linspace(1, 0, steps + 1, dtype=torch.float64), alpha).tolist()


def corrupt(config: FlowConfig, clean: Tensor, noise: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and the velocity the model should give there."""
    t = t_B.view(-1, *[1] * (clean.dim() - 1)).to(clean.dtype)
    keep = 1 - config.sigma_min
    return (1 - t) * clean + (1 - keep * (1 - t)) * noise, keep * noise - clean


def loss_per_sample(predicted: Tensor, target: Tensor, mask_BV: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample, fp32 (B,); `mask_BV` weighs tokens: a mean over those
    that count, 0 for a sample of which none does."""
    error_BV = (predicted.float() - target.float()).square().mean(dim=-1)
    if mask_BV is None:
        return error_BV.mean(dim=1)
    weight = mask_BV.float()
    counted = weight.sum(dim=1)
    return (error_BV * weight).sum(dim=1) / torch.where(counted > 0, counted, 1.0)
