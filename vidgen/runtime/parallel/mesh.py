"""Where a process stands in a run: its rank, its device, the meshes that join it to others."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vidgen.errors import UserError
from vidgen.runtime.parallel.context import ContextGroup

_LAUNCH = "torchrun --nproc-per-node=2 --no-python vidgen train ..."


@dataclass(frozen=True)
class World:
    """All processes of a run, seen from one of them."""

    rank: int
    world: int
    local_rank: int
    device: torch.device
    timeout_s: float = 600.0
    store: dist.Store | None = None  # what the ranks met at; None for a single process
    collective_timeout_s: float | None = None  # of collectives, where it is not `timeout_s`

    def mesh(self, context: int = 1, tensor: int = 1) -> DeviceMesh:
        """Ranks as (data, context, tensor), neighbours last: `context` ranks share a sample's
        tokens, and `tensor` ranks the heads and features of the same tokens."""
        self._check_divides(context * tensor, "context x tensor parallel groups")
        data = self.world // (context * tensor)
        return self._grid({"data": data, "context": context, "tensor": tensor})

    def shard_mesh(self, copies: int = 1, tensor: int = 1) -> DeviceMesh:
        """Ranks as (copies, shard, tensor): parameters are divided over `shard`, which context
        groups are part of, and `copies` of the division are kept equal."""
        self._check_divides(copies * tensor, "copies x tensor parallel groups")
        shard = self.world // (copies * tensor)
        return self._grid({"copies": copies, "shard": shard, "tensor": tensor})

    def context_group(
        self, context: int, tensor: int = 1, degrees: Sequence[int] | None = None
    ) -> ContextGroup:
        """This rank's group, with the grids for these Ulysses degrees (default: all that fit)."""
        group = self.mesh(context, tensor).get_group("context")
        grids = {}
        for degree in _divisors(context) if degrees is None else degrees:
            if context % degree:
                raise UserError(
                    f"{degree} neighbours are to exchange heads in context-parallel groups of "
                    f"{context}; set parallel.ulysses (or --ulysses) to one of "
                    f"{_listed(_divisors(context))}"
                )
            if 1 < degree < context:
                grid = self._grid(
                    {
                        "data": self.world // (context * tensor),
                        "ring": context // degree,
                        "ulysses": degree,
                        "tensor": tensor,
                    }
                )
                grids[degree] = grid.get_group("ring"), grid.get_group("ulysses")
        # Communicators are made by a first operation that all of a group take part in; in a ring, a
        # rank with nothing to send does not.
        for each in (group, *(member for pair in grids.values() for member in pair)):
            dist.all_reduce(torch.zeros(1, device=self.device), group=each)
        return ContextGroup(group, grids)

    def _grid(self, sizes: dict[str, int]) -> DeviceMesh:
        self._ensure_group()
        mesh = init_device_mesh(
            self.device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes)
        )
        if self.collective_timeout_s is not None:
            # Groups of a mesh start with torch's default, 10 minutes for NCCL.
            timeout = timedelta(seconds=self.collective_timeout_s)
            for group in mesh.get_all_groups():
                distributed_c10d._set_pg_timeout(timeout, group)
        return mesh

    def _check_divides(self, size: int, what: str) -> None:
        if size < 1 or self.world % size:
            raise UserError(
                f"{self.world} ranks cannot be split into {what} of {size}; set it to one of "
                f"{_listed(_divisors(self.world))}, or start another number of ranks"
            )

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            on_gpu = self.device.type == "cuda"
            dist.barrier(device_ids=[self.local_rank] if on_gpu else None)

    def sum(self, counts: Sequence[int]) -> list[int]:
        """Of every rank's numbers, each with those at its place."""
        if self.world == 1:
            return [int(count) for count in counts]
        sums = torch.tensor([int(count) for count in counts], device=self.device)
        dist.all_reduce(sums)
        return list(sums.tolist())

    def close(self) -> None:
        """Leave the run; wait for checkpoints under way first."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> "World":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ensure_group(self) -> None:
        """A single process has no process group until a mesh asks for one; it needs no port."""
        if not dist.is_initialized():
            dist.init_process_group(
                _backend(self.device), store=dist.HashStore(), rank=0, world_size=1
            )


def start(
    device: str = "auto", *, timeout_s: float = 600.0, collective_timeout_s: float | None = None
) -> World:
    """Join the run that torchrun describes in the environment, or be a run of one process.

    `device` is auto, cpu or cuda; auto takes a GPU if there is one. A rank that waits for the
    others longer than `timeout_s`, now or in a later collective (`collective_timeout_s` if given),
    ends with an error.
    """
    rank, world, local_rank = (
        _environment(name, default)
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    chosen = choose_device(device, local_rank)
    store: dist.Store | None = None
    if world > 1:
        address = _address(world)
        timeout = timedelta(seconds=timeout_s)
        try:
            store, rank, world = next(dist.rendezvous("env://", rank, world, timeout=timeout))
            # torchrun's own store outlives a failed attempt, whose addresses it still holds.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(f"attempt-{attempt}", store)
            store.set_timeout(timeout)
            dist.init_process_group(
                _backend(chosen),
                store=dist.PrefixStore("vidgen", store),
                rank=rank,
                world_size=world,
                timeout=timedelta(seconds=collective_timeout_s or timeout_s),
            )
        except (dist.DistNetworkError, dist.DistStoreError) as error:
            raise _unreachable(error, address, world, timeout_s) from error
    return World(rank, world, local_rank, chosen, timeout_s, store, collective_timeout_s)


def _backend(device: torch.device) -> str:
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise UserError(f"{name}={text!r} is not a number; start with: {_LAUNCH}")
    return int(text)


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """auto, cpu or cuda to this rank's device; auto takes a GPU if there is one."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device {device!r} is unknown; expected auto, cpu or cuda")
    count = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and count == 0):
        return torch.device("cpu")
    if count == 0:
        raise UserError("device=cuda, but torch finds no GPU here; set device=cpu")
    if local_rank >= count:
        raise UserError(
            f"local rank {local_rank} has no GPU: this machine has {count}; "
            f"start at most {count} a machine: torchrun --nproc-per-node={count}"
        )
    chosen = torch.device("cuda", local_rank)
    torch.cuda.set_device(chosen)
    return chosen


def _address(world: int) -> str:
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if host is None or port is None:
        raise UserError(
            f"WORLD_SIZE={world}, but MASTER_ADDR or MASTER_PORT is not set; start with: {_LAUNCH}"
        )
    return f"{host}:{port}"


def _unreachable(error: Exception, address: str, world: int, timeout_s: float) -> Exception:
    if "EADDRINUSE" in str(error) or "address already in use" in str(error):
        port = int(address.rpartition(":")[2])
        other = port + 1 if port < 65535 else port - 1
        return UserError(
            f"{address} is in use, perhaps by another run; choose a free port: "
            f"torchrun --master-port={other} ..., or MASTER_PORT={other}"
        )
    return UserError(
        f"the {world} ranks did not meet at {address} within {timeout_s:.0f} s; "
        "start all of them with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE"
    )
