"""AdamW with bfloat16 moments; updates weights, moments and EMA in one pass over memory."""

import hashlib
import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vidgen.runtime import ops
from vidgen.runtime.checkpoint.layout import local_part
from vidgen.runtime.ops.adamw import Place
from vidgen.runtime.parallel.zero import local


class Average(Protocol):
    """An EMA of the weights, as the optimizer updates it in the same pass."""

    def rate(self, step: int) -> float: ...
    def of(self, parameter: nn.Parameter) -> Tensor: ...


class AdamWBF16(torch.optim.Optimizer):
    """fp32 weights and arithmetic, bf16 moments: 8 bytes a parameter less to move and to keep.

    To the nearest, bf16 has no room for a second moment that changes by a thousandth a step: it
    would stay where it first came to rest. It is therefore rounded at random, with odds that keep
    its mean; the random bits belong to (parameter, step, element), so that they do not change with
    the ranks a parameter is sharded over, nor with where a run was resumed.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(
            list(parameters),
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay},
        )
        self._places: dict[nn.Parameter, tuple[int, int]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.dtype != torch.float32:
                    raise ValueError(f"the weights must be float32, not {p.dtype}")
                self._places[p] = _place(p)
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p, dtype=torch.bfloat16),
                    "exp_avg_sq": torch.zeros_like(p, dtype=torch.bfloat16),
                }

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # returns no loss
        if closure is not None:
            raise ValueError("this optimizer takes no closure")
        self.step_with(None, 0)

    @torch.no_grad()
    def step_with(self, ema: Average | None, step: int) -> None:
        """Update the weights, and `ema` towards them at its rate for `step`."""
        rate = 0.0 if ema is None else ema.rate(step)
        number = 0
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            steps = [self.state[p]["step"] for p in group["params"]]
            if with_gradient:
                torch._foreach_add_([self.state[p]["step"] for p in with_gradient], 1.0)
            # From the device at once: it has been waited for anyway, for the gradient's norm.
            counted = torch.stack(steps).tolist()
            for p, updates in zip(group["params"], counted, strict=True):
                average = None if ema is None else ema.of(p)
                if p.grad is not None:
                    key = _key(number, int(updates))
                    self._update(p, group, int(updates), key, average, rate)
                elif average is not None:
                    average.lerp_(local(p.detach()), rate)
                number += 1

    def _update(
        self,
        p: nn.Parameter,
        group: dict[str, Any],
        step: int,
        key: tuple[int, int],
        average: Tensor | None,
        rate: float,
    ) -> None:
        assert p.grad is not None
        state = self.state[p]
        first, row = self._places[p]
        ops.adamw(
            _rows(local(p)),
            _rows(local(p.grad)),
            _rows(local(state["exp_avg"])),
            _rows(local(state["exp_avg_sq"])),
            None if average is None else _rows(average),
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            step=step,
            place=Place(key, first, row),
            follow=rate,
        )


def _rows(tensor: Tensor) -> Tensor:
    """As (L, D)."""
    if tensor.dim() < 2:
        return tensor.view(1, -1)
    return tensor.view(tensor.shape[0], math.prod(tensor.shape[1:]))


def _place(parameter: Tensor) -> tuple[int, int]:
    """Which element of the whole tensor this rank's part begins with, and how many are in a row.

    Tensor parallelism keeps rows in an order of its own: there, and there alone, the places are
    those within the rank's part.
    """
    if isinstance(parameter, DTensor) and "tensor" in (parameter.device_mesh.mesh_dim_names or ()):
        return 0, math.prod(parameter.to_local().shape[1:])
    _, box = local_part(parameter)
    whole = parameter.shape
    if box.shape[2:] != tuple(whole[2:]):
        raise ValueError("a parameter is sharded along another than its first two dimensions")
    strides = [math.prod(whole[i + 1 :]) for i in range(len(whole))]
    first = sum(start * stride for start, stride in zip(box.start, strides, strict=True))
    return first, math.prod(whole[1:])


def _key(number: int, step: int) -> tuple[int, int]:
    digest = hashlib.sha256(f"vidgen adamw {number} {step}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")
