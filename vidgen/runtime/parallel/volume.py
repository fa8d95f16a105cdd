"""Bytes that a rank sends, counted as they are sent, and what they should come to.

Collectives count as the best algorithm sends them: an all-gather or a reduce-scatter of n bytes in
all over P ranks (P - 1) / P n, an all-reduce twice that; of an all-to-all, what goes to others.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class CountBytes(TorchDispatchMode):
    """While open, what this process gives to torch.distributed: `sent` by kind of operation."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.sent.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = func.overloadpacket.__name__
        if func.namespace == "c10d" and kind in _SENT:
            self.sent[_NAMES.get(kind, kind)] += _SENT[kind](args)
        return func(*args, **(kwargs or {}))


def all_gather_bytes(whole: int, ranks: int) -> int:
    """Of a rank's share of `whole` bytes, to each other rank; a reduce-scatter is the same."""
    return whole // ranks * (ranks - 1)


def zero_bytes(parameters: int, ranks: int, zero: int, micro_steps: int, itemsize: int) -> int:
    """Of one step: parameters gathered in `itemsize` bytes, gradients reduced in fp32, once.

    ZeRO-2 gathers once a micro-step, ZeRO-3 again for the backward.
    """
    gathers = micro_steps * (1 if zero == 2 else 2)
    return gathers * all_gather_bytes(parameters * itemsize, ranks) + all_gather_bytes(
        parameters * 4, ranks
    )


def _size(group: Any) -> int:
    return int(dist.ProcessGroup.unbox(group).size())


def _rank(group: Any) -> int:
    return int(dist.ProcessGroup.unbox(group).rank())


def _nbytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _all_to_all(args: Any) -> int:
    _, sent, group, _, sizes, *_ = args
    ranks = _size(group)
    row = sent.nbytes // max(1, sent.shape[0])
    own = sizes[_rank(group)] * row if sizes else sent.nbytes // ranks
    return int(sent.nbytes - own)


def _all_reduce(args: Any) -> int:
    ranks = _size(args[1])
    return 2 * _nbytes(args[0]) * (ranks - 1) // ranks


# What each operation's arguments say it sends. Barriers send nothing that counts.
_SENT: dict[str, Callable[[Any], int]] = {
    "send": lambda args: _nbytes(args[0]),
    "alltoall_base_": _all_to_all,
    "allreduce_": _all_reduce,
    "_allgather_base_": lambda args: args[1].nbytes * (_size(args[2]) - 1),
    "allgather_": lambda args: _nbytes(args[1]) * (_size(args[2]) - 1),
    "_reduce_scatter_base_": lambda args: args[0].nbytes * (_size(args[2]) - 1),
}
_NAMES = {
    "send": "ring hop",
    "alltoall_base_": "all-to-all",
    "allreduce_": "all-reduce",
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
}
