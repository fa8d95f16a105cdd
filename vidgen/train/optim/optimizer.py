"""AdamW, its learning rate over a run, the EMA of the weights, and the update of both."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vidgen.errors import UserError
from vidgen.recipe.schema import OptimConfig
from vidgen.runtime.parallel.zero import local
from vidgen.train.optim.adamw_8bit import build_adamw_8bit, state_tensors_8bit
from vidgen.train.optim.adamw_bf16 import AdamWBF16


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimConfig
) -> torch.optim.Optimizer:
    """With its state allocated: what a checkpoint fills must exist before it is read."""
    settings: dict[str, Any] = {
        "lr": config.lr,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    match config.states:
        case "bf16":
            return AdamWBF16(parameters, **settings)
        case "8bit":
            return build_adamw_8bit(parameters, settings)
        case "fp32":
            return _fused(parameters, settings)


def _fused(parameters: Iterable[nn.Parameter], settings: dict[str, Any]) -> torch.optim.AdamW:
    # What is sharded differently is a group of its own: one fused update takes tensors of one mesh.
    alike: dict[object, list[nn.Parameter]] = {}
    for p in parameters:
        key = (p.device_mesh, p.placements) if isinstance(p, DTensor) else None
        alike.setdefault(key, []).append(p)
    groups = [{"params": group} for group in alike.values()]
    optimizer = torch.optim.AdamW(groups, **settings, fused=True)
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
    return optimizer


def state_tensors(
    named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """All that a checkpoint keeps of the optimizer, in place."""
    if not isinstance(optimizer, AdamWBF16 | torch.optim.AdamW):
        return state_tensors_8bit(named, optimizer)
    return {
        f"{name}.{key}": value
        for name, p in named.items()
        for key, value in optimizer.state[p].items()
    }


def check_states_fit(newest: Path, then: OptimConfig, now: OptimConfig) -> None:
    """Of a checkpoint to resume: moments are not converted on the way."""
    if then.states != now.states:
        raise UserError(
            f"{newest} holds moments of optim.states {then.states}, the recipe says {now.states}; "
            f"set optim.states={then.states}, or pass --fresh to start a new run beside it"
        )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # compiled updates read it where it is
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


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
    """fp32 copies of the parameters, sharded as they are, moving towards them by 1 - decay a step.

    The decay is lower early in a run, so that the EMA forgets the initial weights.
    """

    def __init__(self, named: dict[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.tensors: dict[str, Tensor] = {
            name: p.detach().clone().float() for name, p in named.items()
        }
        self._local = {p: local(self.tensors[name]) for name, p in named.items()}

    def rate(self, step: int) -> float:
        """How far the EMA moves towards the weights after `step` completed steps."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    def of(self, parameter: nn.Parameter) -> Tensor:
        """This rank's part of a parameter's EMA."""
        return self._local[parameter]

    @torch.no_grad()
    def update(self, step: int) -> None:
        weights = [local(p.detach()) for p in self._local]
        torch._foreach_lerp_(list(self._local.values()), weights, self.rate(step))


def update_weights_and_ema(optimizer: torch.optim.Optimizer, ema: EMA | None, step: int) -> None:
    """One optimizer step, after which `step` steps are complete; then the EMA follows the weights.

    With bf16 moments both happen in one pass over memory.
    """
    if isinstance(optimizer, AdamWBF16):
        optimizer.step_with(ema, step)
        return
    optimizer.step()
    if ema is not None:
        ema.update(step)
