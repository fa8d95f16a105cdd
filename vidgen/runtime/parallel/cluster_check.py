"""Rates of a cluster: every collective along every axis, every link, every rank's attention.

A slow one is named: it sets the pace of all, and an average does not show it.
"""

import os
import socket
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from vidgen.errors import UserError
from vidgen.runtime.parallel import bandwidth
from vidgen.runtime.parallel.mesh import World

SLOW = 0.7  # of the median of its kind

_COLLECTIVES = {
    "all-reduce": bandwidth.all_reduce,
    "all-gather": bandwidth.all_gather,
    "ring hop": bandwidth.ring_hop,
    "all-to-all": bandwidth.all_to_all,
}


def check_cluster(world: World, axes: dict[str, int], size: int) -> dict[str, Any]:
    """Rates in bytes a rank sends a second, collectively measured; the same on every rank.

    `axes` are the mesh's, outermost first; with more than one, all ranks together are measured
    too. `size` is the bytes of one message.
    """
    groups = _groups(world, axes)
    mine = {
        axis: {name: rate(group, world.device, size) for name, rate in _COLLECTIVES.items()}
        for axis, group in groups.items()
    }
    members = {axis: dist.get_process_group_ranks(group) for axis, group in groups.items()}
    flops = bandwidth.attention_flops(world.device, _dtype(world.device))
    found = _link_rates(world, size)
    everyone: list[Any] = [None] * world.world
    host = socket.gethostname()
    dist.all_gather_object(everyone, (host, flops, mine, members))
    return {
        "ranks": [
            {"rank": rank, "host": host, "attention_flops": flops}
            for rank, (host, flops, _, _) in enumerate(everyone)
        ],
        "axes": _by_group(everyone),
        "links": found,
        "slow": _slow(everyone, found),
    }


def default_axes(world: World) -> dict[str, int]:
    """Machines, and the ranks on one of them."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world.world))
    if world.world % here:
        raise UserError(
            f"{world.world} ranks with {here} on this machine: start the same number on each"
        )
    sizes = {"machines": world.world // here, "ranks of a machine": here}
    return {name: size for name, size in sizes.items() if size > 1}


def _groups(world: World, axes: dict[str, int]) -> dict[str, dist.ProcessGroup]:
    mesh = init_device_mesh(world.device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))
    groups = {axis: mesh.get_group(axis) for axis, size in axes.items() if size > 1}
    if len(groups) > 1:
        groups["all"] = dist.new_group(list(range(world.world)))
    return groups


def _link_rates(world: World, size: int) -> list[dict[str, Any]]:
    """From each rank to the next, one at a time, so that none waits for another's."""
    pairs = [(rank, (rank + 1) % world.world) for rank in range(world.world)]
    buffer = torch.zeros(size, dtype=torch.uint8, device=world.device)
    rates = torch.zeros(len(pairs), dtype=torch.float64)
    for number, (source, target) in enumerate(pairs):
        world.barrier()
        if world.rank in (source, target):
            seconds = _send_seconds(buffer, source, target, world)
            if world.rank == source:
                rates[number] = size / seconds
    dist.all_reduce(rates)
    return [
        {"from": source, "to": target, "bytes_per_s": rate}
        for (source, target), rate in zip(pairs, rates.tolist(), strict=True)
    ]


def _send_seconds(buffer: torch.Tensor, source: int, target: int, world: World) -> float:
    """There, and a byte back to say that it has come."""
    receipt = buffer[:1].clone()

    def round_trip() -> None:
        if world.rank == source:
            dist.send(buffer, target)
            dist.recv(receipt, target)
        else:
            dist.recv(buffer, source)
            dist.send(receipt, source)

    return bandwidth.best_seconds(round_trip, world.device)


def _by_group(everyone: list[Any]) -> list[dict[str, Any]]:
    """One row for each axis, collective and group; a group is as fast as its slowest rank says."""
    rows: dict[tuple[str, str, tuple[int, ...]], float] = {}
    for _, _, rates, members in everyone:
        for axis, collectives in rates.items():
            for name, rate in collectives.items():
                key = axis, name, tuple(members[axis])
                rows[key] = min(rate, rows.get(key, rate))
    return [
        {"axis": axis, "collective": name, "ranks": list(ranks), "bytes_per_s": rate}
        for (axis, name, ranks), rate in rows.items()
    ]


def _slow(everyone: list[Any], found: list[dict[str, Any]]) -> list[str]:
    lines = []
    usual = median(flops for _, flops, _, _ in everyone)
    for rank, (host, flops, _, _) in enumerate(everyone):
        if flops < SLOW * usual:
            lines.append(
                f"rank {rank} on {host} attends at {flops / usual:.0%} of the median rank's speed"
            )
    usual = median(link["bytes_per_s"] for link in found)
    for link in found:
        if link["bytes_per_s"] < SLOW * usual:
            source, target = link["from"], link["to"]
            lines.append(
                f"link from rank {source} ({everyone[source][0]}) to rank {target} "
                f"({everyone[target][0]}) carries {link['bytes_per_s'] / usual:.0%} of the median "
                "link's"
            )
    return lines


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32
