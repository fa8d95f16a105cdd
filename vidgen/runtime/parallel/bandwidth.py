"""Measured rates: bandwidth of ring hops and collectives, and attention FLOP/s.

A rate is bytes one rank sends per second, of the slowest rank.
"""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from vidgen.runtime.attention.choice import choose_for_blocks
from vidgen.runtime.parallel.arrangement import Arrangement, Rates
from vidgen.runtime.parallel.context import ContextGroup
from vidgen.runtime.parallel.p2p import Ring

Group = dist.ProcessGroup


def measure_rates(group: ContextGroup, device: torch.device, dtype: torch.dtype) -> Rates:
    """Rates of attention, ring hops and all-to-alls of a context group, within a second."""
    size = (64 if device.type == "cuda" else 1) * 2**20
    hop, exchange = {}, {}
    for degree in group.degrees:
        ring, ulysses = group.grid(degree)
        if ring is not None:
            hop[degree] = _slowest(ring_hop(ring, device, size), group)
        if ulysses is not None:
            exchange[degree] = _slowest(all_to_all(ulysses, device, size), group)
    return Rates(_slowest(attention_flops(device, dtype), group), hop, exchange)


def arrange(
    group: ContextGroup, ulysses: int | None, device: torch.device, dtype: torch.dtype
) -> Arrangement:
    """A context group's arrangement of attention; its rates are measured unless it is fixed."""
    rates = measure_rates(group, device, dtype) if ulysses is None else None
    return Arrangement(group.size, group.degrees, ulysses, rates)


def _slowest(rate: float, group: ContextGroup) -> float:
    """The same rate on all ranks of the group, so that all choose the same arrangement."""
    slowest = torch.tensor(rate, dtype=torch.float64)  # on the CPU: gloo is always there
    dist.all_reduce(slowest, op=dist.ReduceOp.MIN, group=group.group)
    return float(slowest)


def attention_flops(device: torch.device, dtype: torch.dtype) -> float:
    gpu = device.type == "cuda"
    L, H, D = (8192, 24, 128) if gpu else (512, 2, 64)
    q = torch.randn(1, L, H, D, device=device).to(dtype)
    backend = choose_for_blocks(q, L, gradient=True)
    return 4 * L * L * H * D / best_seconds(lambda: backend.over_block(q, q, q, D**-0.5), device)


def ring_hop(group: Group, device: torch.device, size: int) -> float:
    ring = Ring(group, [1] * dist.get_world_size(group))
    here, there = _buffers(device, size)
    return size / best_seconds(lambda: ring.hop(here, there).wait(), device, group)


def all_to_all(group: Group, device: torch.device, size: int) -> float:
    ranks = dist.get_world_size(group)
    size = size // ranks * ranks
    here, there = _buffers(device, size)
    elapsed = best_seconds(lambda: dist.all_to_all_single(there, here, group=group), device, group)
    return size * (ranks - 1) / ranks / elapsed


def all_reduce(group: Group, device: torch.device, size: int) -> float:
    ranks = dist.get_world_size(group)
    numbers = torch.zeros(size // 4, device=device)
    elapsed = best_seconds(lambda: dist.all_reduce(numbers, group=group), device, group)
    return 2 * size * (ranks - 1) / ranks / elapsed


def all_gather(group: Group, device: torch.device, size: int) -> float:
    """`size` is the bytes of the gathered tensor."""
    ranks = dist.get_world_size(group)
    here = torch.zeros(size // ranks, dtype=torch.uint8, device=device)
    there = torch.empty(size // ranks * ranks, dtype=torch.uint8, device=device)
    elapsed = best_seconds(
        lambda: dist.all_gather_into_tensor(there, here, group=group), device, group
    )
    return here.nbytes * (ranks - 1) / elapsed


def _buffers(device: torch.device, size: int) -> tuple[Tensor, Tensor]:
    here = torch.zeros(size, dtype=torch.uint8, device=device)
    return here, torch.empty_like(here)


def best_seconds(
    work: Callable[[], object], device: torch.device, group: Group | None = None, repeats: int = 5
) -> float:
    """The shortest of several runs after a warm-up; ranks of a group begin each run together."""

    def once() -> float:
        if group is not None:
            dist.barrier(group)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    return min(once() for _ in range(repeats))
