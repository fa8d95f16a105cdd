"""One hop around a ring of ranks: send to the next, receive from the one before."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Ring:
    """The ranks of a group in a circle, and how many tokens each of them holds."""

    def __init__(self, group: dist.ProcessGroup | None, lengths: Sequence[int]) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.lengths = tuple(lengths)
        if len(self.lengths) != self.size:
            raise ValueError(f"{len(self.lengths)} lengths for a group of {self.size} ranks")

    def owner(self, hops: int) -> int:
        """Whose tokens are here after so many hops."""
        return (self.rank - hops) % self.size

    def hop(self, here: Tensor, there: Tensor) -> "Hop":
        """Send `here` on and receive `there`; on every rank, hops begin in the same order."""
        return Hop(self, here, there)


class Hop:
    """A hop under way. It holds both buffers until `wait`: gloo reads and fills them till then."""

    def __init__(self, ring: Ring, here: Tensor, there: Tensor) -> None:
        assert here.is_contiguous()
        assert there.is_contiguous()
        self._here, self._there = here, there
        self._works: list[dist.Work] = []
        if ring.size == 1:
            there.copy_(here)
            return
        after, before = (ring.rank + 1) % ring.size, (ring.rank - 1) % ring.size

        def send() -> None:
            if here.numel():  # an empty shard is known to be empty on both sides
                work = dist.isend(_bytes(here), group=ring.group, group_dst=after)
                self._works.append(_checked(work))

        def receive() -> None:
            if there.numel():
                work = dist.irecv(_bytes(there), group=ring.group, group_src=before)
                self._works.append(_checked(work))

        # Neighbours take opposite orders (two even ones meet where an odd ring closes, and wait for
        # the others in turn), so a transport that runs one operation at a time does not deadlock.
        for action in (send, receive) if ring.rank % 2 == 0 else (receive, send):
            action()

    def wait(self) -> Tensor:
        """What has been received."""
        for work in self._works:
            work.wait()
        return self._there


def _bytes(tensor: Tensor) -> Tensor:
    """The same storage as bytes: not every transport knows every dtype."""
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
