"""Several ranks: resharding, copies written once, and failures that every rank hears of."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from vidgen.errors import UserError
from vidgen.runtime import checkpoint
from vidgen.runtime.checkpoint.layout import read_manifest


def join(rank: int, world: int, folder: Path, name: str = "store") -> None:
    store = dist.FileStore(str(folder / name), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)


def net() -> nn.Module:
    """Sizes that no number of ranks divides; a bias that leaves ranks of four without a part."""
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3, bias=True), nn.Linear(3, 1))


def trained(value: float, mesh: DeviceMesh | None) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model after a step, its parameters' values known, sharded unless there is one rank."""
    torch.manual_seed(int(value))
    model = net()
    if mesh is not None:
        for layer in model:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    return model, optimizer


def groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    names = [name for name, _ in model.named_parameters()]
    moments = {
        f"{name}.{key}": value
        for name, parameter in zip(names, model.parameters(), strict=True)
        for key, value in optimizer.state[parameter].items()
    }
    return {"model": model.state_dict(), "optim": moments}


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def reshard(rank: int, most: int, folder: Path) -> list[Any]:
    """Save on 2 ranks, load and save on 1, load on 4: on the way all of it stays as it was."""
    torch.manual_seed(0)
    root, files = folder / "run", []
    previous: dict[str, dict[str, torch.Tensor]] = {}
    for step, world in enumerate((2, 1, 4, 3)):
        if rank >= world:
            continue
        join(rank, world, folder, f"store-{step}")
        mesh = init_device_mesh("cpu", (world,)) if world > 1 else None
        model, optimizer = trained(step, mesh)  # with other values in every world
        here = groups(model, optimizer)
        if step:
            path = checkpoint.latest(root)
            assert path is not None
            assert checkpoint.load(path, here) == {"trainer": {"step": step - 1}}
        now = {g: {n: full(t).clone() for n, t in m.items()} for g, m in here.items()}
        if previous:
            for group, members in previous.items():
                for name, tensor in members.items():
                    assert torch.equal(now[group][name], tensor), (group, name)
        previous = now
        path = checkpoint.save(root, step, here, {"trainer": {"step": step}}).wait()
        assert checkpoint.verify(path) == []
        for group, members in now.items():
            whole = checkpoint.read_tensors(path, group)
            assert whole.keys() == members.keys()
            assert all(torch.equal(whole[name], tensor) for name, tensor in members.items())
        files.append(sorted(os.listdir(path)))
        dist.barrier()
        dist.destroy_process_group()
    return files


def test_two_ranks_to_one_to_four_to_three(ranks: Any) -> None:
    files = ranks(reshard, 4)[0]
    assert [len(names) for names in files] == [2 * world + 2 for world in (2, 1, 4, 3)]
    assert "optim-00003-of-00004.safetensors" in files[2]


def any_sharding(rank: int, world: int, folder: Path) -> None:
    join(rank, world, folder)
    torch.manual_seed(0)
    values = torch.randn(7, 6, 5)
    flat = init_device_mesh("cpu", (world,))
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts"))
    layouts: dict[str, tuple[DeviceMesh, list[Any]]] = {
        "rows": (flat, [Shard(0)]),
        "columns": (flat, [Shard(1)]),
        "last": (flat, [Shard(2)]),
        "copied": (flat, [Replicate()]),
        "both": (grid, [Shard(0), Shard(1)]),
        "twice": (grid, [Shard(0), Shard(0)]),
        "hybrid": (grid, [Replicate(), Shard(1)]),
        "inner": (grid["parts"], [Shard(0)]),
    }
    tensors = {name: distribute_tensor(values, *layout) for name, layout in layouts.items()}
    members: dict[str, torch.Tensor] = {**tensors, "plain": values.clone()}
    if rank == 2:
        members["private"] = values.clone()  # on one rank only
    path = checkpoint.save(folder / "run", 1, {"model": members}, {"rank": rank}).wait()
    assert checkpoint.read_objects(path) == {"rank": 0}

    # Each is read as each other: every box of every slice meets every box asked for.
    for source, tensor in checkpoint.read_tensors(path, "model").items():
        assert torch.equal(tensor, values), source
    turned = list(layouts.values())
    for shift in range(1, len(turned)):
        rotated = turned[shift:] + turned[:shift]
        target: dict[str, torch.Tensor] = {
            name: distribute_tensor(torch.zeros_like(values), *layout)
            for name, layout in zip(layouts, rotated, strict=True)
        }
        target |= {"plain": torch.zeros_like(values), "private": torch.zeros_like(values)}
        checkpoint.load(path, {"model": target})
        for name, tensor in target.items():
            assert torch.equal(full(tensor), values), name

    # Nothing is written twice, and the ranks share the work.
    sizes = [0] * world
    for entry in read_manifest(path).tensors["model"].values():
        for part in entry.slices:
            sizes[int(part.file.split("-")[1])] += part.box.numel
    assert sum(sizes) == values.numel() * len(target)
    assert max(sizes) <= 1.2 * values.numel() * len(target) / world

    partial = DTensor.from_local(values, flat, [Partial()])
    with pytest.raises(Exception, match=r"[Pp]artial"):
        checkpoint.save(folder / "run", 2, {"model": {"w": partial}}, {})
    dist.destroy_process_group()


def test_any_sharding_is_written_once_and_read_as_any_other(ranks: Any) -> None:
    ranks(any_sharding, 4)


def failures(rank: int, world: int, folder: Path) -> list[str]:
    """A rank that fails, then a rank that dies: the others are told, and nothing is visible."""
    join(rank, world, folder)
    root, tensors = folder / "run", {"model": {"a": torch.ones(9), "b": torch.ones(9)}}
    checkpoint.save(root, 1, tensors, {}).wait()
    said = []

    real_fsync = os.fsync

    def full_disk(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if rank == 1:
        os.fsync = full_disk
    with pytest.raises(UserError) as refusal:
        checkpoint.save(root, 2, tensors, {}).wait()
    os.fsync = real_fsync
    said.append(str(refusal.value))
    dist.barrier()
    assert os.listdir(root) == ["step-000000001"]
    checkpoint.save(root, 3, tensors, {}).wait()

    dist.barrier()
    if rank == 1:
        os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError) as lost:
        checkpoint.save(root, 4, tensors, {}).wait()
    said.append(str(lost.value))
    assert checkpoint.steps(root) == [1, 3]
    return said


def test_a_failing_rank_and_a_dying_one_end_the_save_on_all(ranks: Any) -> None:
    told, dead = ranks(failures, 2)
    assert dead is None
    assert told[0].startswith("rank 1: step 2 was not saved")
    assert "the disk is full" in told[0]
    assert "Connection" in told[1] or "rank" in told[1]
