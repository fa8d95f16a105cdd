"""AdamW with torchao's 8-bit moments: codes of one byte, a scale for each 256 neighbours."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vidgen.errors import UserError
from vidgen.runtime.parallel.zero import local

_BLOCK = 256  # elements that share a scale
_AT_LEAST = 4096  # elements of a tensor whose moments are worth it


def build_adamw_8bit(
    parameters: Iterable[nn.Parameter], settings: dict[str, Any]
) -> torch.optim.Optimizer:
    try:
        from torchao.optim import AdamW8bit
        from torchao.optim.subclass_8bit import OptimState8bit
    except ImportError:
        raise UserError(
            "optim.states=8bit needs torchao, which is not installed: type "
            '`pip install "vidgen[8bit]"`, or set optim.states=bf16'
        ) from None

    parameters = list(parameters)
    if any(isinstance(p, DTensor) and "tensor" in _names(p) for p in parameters):
        raise UserError(
            "optim.states=8bit does not divide with parallel.tensor above 1: set "
            "optim.states=bf16, or parallel.tensor=1"
        )

    def moment(p: Tensor, signed: bool) -> Tensor:
        part = local(p.detach())
        if not in_blocks(p) or not part.numel():
            return torch.zeros_like(p)
        zeros = OptimState8bit.zeros(part.shape, signed, _BLOCK, part.device, dtype=part.dtype)
        return _divided_like(p, zeros, tuple(p.shape))

    optimizer: torch.optim.Optimizer = AdamW8bit(parameters, **settings, block_size=_BLOCK)
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": moment(p, True),
                "exp_avg_sq": moment(p, False),
            }
    return optimizer


def _names(parameter: DTensor) -> tuple[str, ...]:
    return parameter.device_mesh.mesh_dim_names or ()


def in_blocks(parameter: Tensor) -> bool:
    """Whether a parameter's moments take 8 bits: a question of the whole of it, so that all ranks
    agree, and only where no block crosses from one row to the next, and so from rank to rank."""
    shape = parameter.shape
    whole_blocks = len(shape) > 1 and math.prod(shape[1:]) % _BLOCK == 0
    return whole_blocks and shape.numel() >= _AT_LEAST


def state_tensors_8bit(
    named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """What a checkpoint keeps: in place of each moment its codes, and scales as (rows, blocks)."""
    found: dict[str, Tensor] = {}
    for name, p in named.items():
        for key, value in optimizer.state[p].items():
            if key == "step" or not in_blocks(p):
                found[f"{name}.{key}"] = value
                continue
            part: Any = local(value)  # torchao's tensor of codes and scales
            rows, blocks = part.shape[0], math.prod(p.shape[1:]) // _BLOCK
            if part.numel():
                codes, scales = part.codes, part.scale.view(rows, blocks)
            else:  # this rank has no row
                codes = torch.zeros(part.shape, dtype=torch.uint8, device=p.device)
                scales = torch.zeros(0, blocks, device=p.device)
            found[f"{name}.{key}.codes"] = _divided_like(p, codes, tuple(p.shape))
            found[f"{name}.{key}.scales"] = _divided_like(p, scales, (p.shape[0], blocks))
    return found


def _divided_like(parameter: Tensor, part: Tensor, shape: tuple[int, ...]) -> Tensor:
    """This rank's part as one of a whole that is sharded as the parameter is."""
    if not isinstance(parameter, DTensor):
        return part
    strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    return DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=strides,
    )
