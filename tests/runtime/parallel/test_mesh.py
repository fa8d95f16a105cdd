"""Joining a run: ranks, meshes, and the one line each mistake gets."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from vidgen.errors import UserError
from vidgen.runtime.parallel import start


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_a_single_process_opens_no_port_until_a_mesh_is_asked_for() -> None:
    with start("cpu") as world:
        assert (world.rank, world.world, world.device) == (0, 1, torch.device("cpu"))
        world.barrier()
        assert not dist.is_initialized()
        assert world.mesh().shape == (1, 1, 1)
        assert world.shard_mesh().shape == (1, 1, 1)
    assert not dist.is_initialized()


def walk(rank: int, world: int, folder: Path, port: int) -> list[Any]:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with start("cpu", timeout_s=200) as here:
        mesh = here.mesh(context=2)
        here.barrier()
        data, context, tensor = (dist.get_process_group_ranks(g) for g in mesh.get_all_groups())
        assert tensor == [rank]
        shards = here.shard_mesh()
        flat = dist.get_process_group_ranks(shards.get_group("shard"))
        copies = here.shard_mesh(copies=2).get_group("copies")
        assert dist.get_process_group_ranks(copies) == [rank % 2, rank % 2 + 2]
        grids = here.context_group(4)
        assert grids.degrees == [1, 2, 4]
        ring, ulysses = grids.grid(2)
        assert ring is not None
        assert ulysses is not None
        assert dist.get_process_group_ranks(ring) == [rank % 2, rank % 2 + 2]
        assert dist.get_process_group_ranks(ulysses) == [rank // 2 * 2, rank // 2 * 2 + 1]
        with pytest.raises(UserError, match=r"to one of 1, 2, 4$"):
            here.context_group(4, degrees=[3])
        with pytest.raises(UserError) as refusal:
            here.mesh(context=3)
        return [list(mesh.shape), data, context, flat, str(refusal.value)]


def test_context_groups_are_neighbours(ranks: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    refusal = (
        "4 ranks cannot be split into context x tensor parallel groups of 3; "
        "set it to one of 1, 2, 4, or start another number of ranks"
    )
    everyone = [0, 1, 2, 3]
    assert ranks(walk, 4, port) == [
        [[2, 2, 1], [0, 2], [0, 1], everyone, refusal],
        [[2, 2, 1], [1, 3], [0, 1], everyone, refusal],
        [[2, 2, 1], [0, 2], [2, 3], everyone, refusal],
        [[2, 2, 1], [1, 3], [2, 3], everyone, refusal],
    ]


def test_a_port_in_use_is_named_with_one_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(UserError) as refusal:
            start("cpu", timeout_s=5)
    assert f"localhost:{port} is in use" in str(refusal.value)
    assert "torchrun --master-port=" in str(refusal.value)


def test_ranks_that_never_come_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="the 2 ranks did not meet"):
        start("cpu", timeout_s=1)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "first"}, "RANK='first' is not a number; start with: torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR or MASTER_PORT is not set"),
    ],
)
def test_a_broken_environment_is_explained(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refusal:
        start("cpu")
    assert said in str(refusal.value)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UserError, match="expected auto, cpu or cuda"):
        start("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="set device=cpu"):
        start("cuda")
    assert start("auto").device.type == "cpu"
