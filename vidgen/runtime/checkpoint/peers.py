"""How the ranks of a run talk about a checkpoint without disturbing training."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from vidgen.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Peers:
    """All ranks, over a gloo group of their own, so that writing shares no queue with training."""

    rank: int
    world: int
    group: dist.ProcessGroup | None

    def exchange(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.group)
        return values

    def agree(self, error: Exception | None) -> None:
        """Raise on every rank if any rank brings an error: its own, or a line naming that rank."""
        reports = self.exchange(
            (str(error) or repr(error), isinstance(error, UserError)) if error else None
        )
        if error:
            raise error
        for rank, report in enumerate(reports):
            if report:
                raise (UserError if report[1] else RuntimeError)(f"rank {rank}: {report[0]}")


_made: tuple[object, Peers] | None = None  # for the default process group that it was made under


def peers(storage_timeout_s: float = 3600.0) -> Peers:
    """The ranks of this run; the first call under a process group must be made by all of them."""
    global _made
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Peers(0, 1, None)
    default = dist.group.WORLD
    if _made is None or _made[0] is not default:
        # A rank may wait for storage while the others wait for it.
        timeout = timedelta(seconds=storage_timeout_s + 60)
        group = dist.new_group(backend="gloo", timeout=timeout)
        _made = (default, Peers(dist.get_rank(), dist.get_world_size(), group))
    return _made[1]
