"""Point-to-point exchange around a ring: send to the next rank, receive from the previous one."""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from vidgen.runtime.parallel import flight_recorder


class Hop(Protocol):
    """A hop in progress; its caller keeps the buffers alive until `wait` returns."""

    def wait(self) -> Tensor:
        """What has been received."""
        ...


class Hops(Protocol):
    """A ring as one of its ranks sees it: `Ring` over a process group, or a simulation."""

    rank: int
    lengths: tuple[int, ...]

    def hop(self, here: Tensor, there: Tensor) -> Hop:
        """Send `here` on and receive `there`; on every rank, hops begin in the same order."""
        ...


class Ring:
    """The ranks of a group in a circle, and how many tokens each of them holds."""

    def __init__(self, group: dist.ProcessGroup | None, lengths: Sequence[int]) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.lengths = tuple(lengths)
        if len(self.lengths) != self.size:
            raise ValueError(f"{len(self.lengths)} lengths for a group of {self.size} ranks")

    def hop(self, here: Tensor, there: Tensor) -> "GroupHop":
        return GroupHop(self, here, there)


class GroupHop:
    """Keeps both buffers until `wait`: gloo reads and fills them until then."""

    def __init__(self, ring: Ring, here: Tensor, there: Tensor) -> None:
        assert here.is_contiguous()
        assert there.is_contiguous()
        self._here, self._there = here, there
        self._works: list[dist.Work] = []
        flight_recorder.note(f"ring hop of {here.nbytes} bytes")
        if ring.size == 1:
            there.copy_(here)
            return
        after, before = (ring.rank + 1) % ring.size, (ring.rank - 1) % ring.size
        operations = []
        if here.numel():  # an empty shard is known to be empty on both sides
            operations.append(
                dist.P2POp(dist.isend, as_bytes(here), group=ring.group, group_peer=after)
            )
        if there.numel():
            operations.append(
                dist.P2POp(dist.irecv, as_bytes(there), group=ring.group, group_peer=before)
            )
        if here.is_cuda:
            # NCCL runs grouped operations together; separate ones would run one way at a time.
            self._works = dist.batch_isend_irecv(operations) if operations else []
            return
        # Neighbours take opposite orders (two even ones meet where an odd ring closes, and wait for
        # the others in turn), so a transport that runs one operation at a time does not deadlock.
        for operation in operations if ring.rank % 2 == 0 else reversed(operations):
            begin = dist.isend if operation.op is dist.isend else dist.irecv
            peer = {"group_dst" if begin is dist.isend else "group_src": operation.group_peer}
            self._works.append(_checked(begin(operation.tensor, group=ring.group, **peer)))

    def wait(self) -> Tensor:
        for work in self._works:
            work.wait()
        return self._there


def as_bytes(tensor: Tensor) -> Tensor:
    """The same storage as bytes: not every transport supports every dtype."""
    return tensor.view(-1).view(torch.uint8)


def _checked(work: dist.Work | None) -> dist.Work:
    assert work is not None, "this process is not in the group"
    return work


def gather_lengths(length: int, device: torch.device, group: dist.ProcessGroup | None) -> list[int]:
    """Every rank's number of tokens, in the order of ranks."""
    mine = torch.tensor([length], dtype=torch.int64, device=device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    return [int(n) for n in everyone]
