"""AdamW, its learning rate over a run, and the moving average of the weights."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vidgen.runtime.parallel.zero import local
from vidgen.train.config import OptimConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """Fused, with its state made at once: what a checkpoint fills must exist before it is read."""
    # What is sharded differently is a group of its own: one fused update takes tensors of one mesh.
    alike: dict[object, list[nn.Parameter]] = {}
    for p in parameters:
        key = (p.device_mesh, p.placements) if isinstance(p, DTensor) else None
        alike.setdefault(key, []).append(p)
    optimizer = torch.optim.AdamW(
        [{"params": group} for group in alike.values()],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
    return optimizer


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Of the step after `step` completed ones, in a run of `steps`."""
    lr = config.lr
    for start in sorted(config.drops):
        if step >= start:
            lr = config.drops[start]
    if config.decay_to is not None:
        done = min(1.0, step / steps)
        lr = config.decay_to + (lr - config.decay_to) * 0.5 * (1 + math.cos(math.pi * done))
    if step < config.warmup:
        lr *= (step + 1) / config.warmup
    return lr


class EMA:
    """fp32 copies of the parameters, sharded as they are, following them at a rate of 1 - decay.

    Early in a run the decay is held down, so that the average forgets the initial weights.
    """

    def __init__(self, named: dict[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.tensors: dict[str, Tensor] = {
            name: p.detach().clone().float() for name, p in named.items()
        }
        self._pairs = [(local(self.tensors[name]), p) for name, p in named.items()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [average for average, _ in self._pairs]
        torch._foreach_lerp_(averages, [local(p.detach()) for _, p in self._pairs], 1 - decay)
