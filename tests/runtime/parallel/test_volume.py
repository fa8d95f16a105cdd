"""Bytes sent are those of the formulas in the docs, for attention of every kind and for ZeRO."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from vidgen.runtime.parallel import (
    ring_attention,
    shard,
    synchronise_gradients,
    ulysses_attention,
)
from vidgen.runtime.parallel.choose import Shape, ring_bytes, ulysses_bytes
from vidgen.runtime.parallel.volume import CountBytes, all_gather_bytes, zero_bytes

WORLD = 4
HEADS, DIM, BATCH = 3, 8, 2


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
