"""Bytes sent are those of the formulas in the docs, for attention of every kind and for ZeRO."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from vidgen.runtime.parallel import (
    ring_attention,
    shard,
    synchronise_gradients,
    ulysses_attention,
)
from vidgen.runtime.parallel.arrangement import Shape, ring_bytes, ulysses_bytes

WORLD = 4
HEADS, DIM, BATCH = 3, 8, 2


# Collectives count as the best algorithm sends them: an all-gather or a reduce-scatter of n bytes
# in all over P ranks (P - 1) / P n, an all-reduce twice that; an all-to-all, what goes to others.


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


def attention_volume(rank: int, lengths: list[int], replicated: int, dtype: torch.dtype) -> None:
    length = lengths[rank] + replicated
    shape = Shape(BATCH, sum(lengths), HEADS, DIM, dtype.itemsize)
    ring = ring_bytes(shape, lengths, rank)
    ulysses = ulysses_bytes(shape, lengths, rank, replicated)
    for attend, kind, (forward, backward) in (
        (ring_attention, "ring hop", ring),
        (ulysses_attention, "all-to-all", ulysses),
    ):
        q, k, v = (
            torch.randn(BATCH, length, HEADS, DIM).to(dtype).requires_grad_() for _ in range(3)
        )
        with CountBytes() as count:
            out = attend(q, k, v, lengths=lengths, replicated=replicated)
        assert dict(count.sent) == {kind: forward}
        with CountBytes() as count:
            out.sum().backward()
        assert dict(count.sent) == {kind: backward}


def zero_volume(zero: int, micro_steps: int) -> None:
    width, depth = 8, 3
    blocks = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(depth)))
    mesh = init_device_mesh("cpu", (WORLD,))
    shard(blocks, blocks, mesh, zero=zero, param_dtype=torch.bfloat16)
    with CountBytes() as count:
        for micro in range(micro_steps):
            synchronise_gradients(blocks, micro + 1 == micro_steps)
            blocks(torch.ones(2, width, dtype=torch.bfloat16)).sum().backward()
    parameters = depth * width**2
    assert count.total == zero_bytes(parameters, WORLD, zero, micro_steps, 2), (
        zero,
        micro_steps,
        dict(count.sent),
    )
    assert count.sent["reduce-scatter"] == all_gather_bytes(parameters * 4, WORLD)


def volumes(rank: int, world: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    for lengths in ([5, 3, 0, 4], [2, 2, 2, 2]):
        for replicated in (0, 3):
            for dtype in (torch.bfloat16, torch.float64):
                attention_volume(rank, lengths, replicated, dtype)
    for zero in (2, 3):
        for micro_steps in (1, 2):
            zero_volume(zero, micro_steps)
    dist.barrier()
    dist.destroy_process_group()


def test_what_is_sent_is_what_the_formulas_say(ranks: Any) -> None:
    ranks(volumes, WORLD)
