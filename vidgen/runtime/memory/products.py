"""Keeping what is dear to compute, matrix products and attention, and computing the rest again.

Between two products of a transformer block lie norms, modulation, rotation and activation
functions: half of what autograd would keep, and a few percent of the time.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

_MATMULS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}

Pack = Callable[[Tensor], Any]
Unpack = Callable[[Any], Tensor]


def keep_products(
    block: Callable[..., Any], *inputs: Any, pack: Pack | None = None, unpack: Unpack | None = None
) -> Any:
    """`block(*inputs)`, keeping its inputs and products until the backward pass; `pack` may put
    something in a product's place, which `unpack` makes a product again."""
    kept: dict[str, deque[Any]] = defaultdict(deque)
    saving = _Saving(kept, pack or (lambda tensor: tensor))
    replaying = _Replaying(kept, unpack or (lambda saved: saved))
    return checkpoint(
        block,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (saving, replaying),
    )


def is_product(op: Any) -> bool:
    name = op._schema.name
    return name in _MATMULS or (
        ("attention" in name or "flash_attn" in name) and "backward" not in name
    )


class _Saving(TorchDispatchMode):
    def __init__(self, kept: dict[str, deque[Any]], pack: Pack) -> None:
        super().__init__()
        self._kept, self._pack = kept, pack
        self._storages: set[int] = set()

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if op._schema.is_mutable:
            self._check_writes(op, args)
        out = op(*args, **(kwargs or {}))
        if is_product(op):
            self._kept[op.name()].append(tree_map_only(Tensor, self._save, out))
        return out

    def _save(self, tensor: Tensor) -> Any:
        self._storages.add(tensor.untyped_storage()._cdata)
        return self._pack(tensor.detach())

    def _check_writes(self, op: Any, args: tuple[Any, ...]) -> None:
        for argument, value in zip(op._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(value, Tensor) and self._holds(value):
                raise RuntimeError(
                    f"{op.name()} changes a product in place, which the backward pass needs as it "
                    "was; write its result elsewhere"
                )

    def _holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages


class _Replaying(TorchDispatchMode):
    def __init__(self, kept: dict[str, deque[Any]], unpack: Unpack) -> None:
        super().__init__()
        self._kept, self._unpack = kept, unpack

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not is_product(op):
            return op(*args, **(kwargs or {}))
        saved = self._kept[op.name()].popleft()
        with torch.no_grad():
            return torch.utils._pytree.tree_map(self._restore, saved)

    def _restore(self, saved: Any) -> Any:
        plain = saved is None or isinstance(saved, int | float | bool | str)
        return saved if plain else self._unpack(saved)
