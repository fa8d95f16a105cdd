"""The lanes' edge to files: reads and writes at an offset, queued, from and to leases."""

from typing import Any, Protocol

from torch import Tensor

from vidgen.runtime import native
from vidgen.runtime.memory.arena import Lease
from vidgen.runtime.memory.lane import Producer, Ticket, edge
from vidgen.runtime.memory.simulated import SimulatedEngine


class OpenFile(Protocol):
    def fileno(self) -> int: ...


class FileLane:
    """A queue of reads and writes that keep their order, served by a thread of its own, or by a
    simulated engine beside other lanes. What fails is raised by the ticket as an OSError; `close`
    raises it where nobody has asked."""

    def __init__(self, *, engine: SimulatedEngine | None = None, name: str = "file lane") -> None:
        memory = native.require().memory
        self._native = (
            memory.file_lane(name) if engine is None else memory.simulated_file_lane(engine.native)
        )
        self._under_way: list[Ticket] = []

    def write(
        self,
        src: Tensor,
        file: int | OpenFile,
        offset: int,
        *,
        producer: Producer,
        lease: Lease | None,
    ) -> Ticket:
        """Queue a write of all of `src` (host memory) at `offset`, behind `producer`: the ticket of
        the copy that brought it there, or HOST."""
        work = self._native.write(
            _number(file), offset, _address(src), src.nbytes, *_edges(producer, lease, src)
        )
        return self._note(Ticket(work, src))

    def read(
        self,
        file: int | OpenFile,
        offset: int,
        dst: Tensor,
        *,
        producer: Producer,
        lease: Lease | None,
    ) -> Ticket:
        """Queue a read that fills all of `dst`; a file that ends before is an error."""
        work = self._native.read(
            _address(dst), _number(file), offset, dst.nbytes, *_edges(producer, lease, dst)
        )
        return self._note(Ticket(work, dst))

    def close(self) -> None:
        """Wait for all of them; raises the first failure."""
        under_way, self._under_way = self._under_way, []
        for ticket in under_way:
            if not ticket.asked:
                ticket.wait()

    def _note(self, ticket: Ticket) -> Ticket:
        while self._under_way and self._under_way[0].done():
            oldest = self._under_way.pop(0)
            if not oldest.asked:
                oldest.wait()  # raises here what nobody has waited for
        self._under_way.append(ticket)
        return ticket


def _edges(producer: Producer, lease: Lease | None, tensor: Tensor) -> tuple[Any, Any, Tensor]:
    stream, ticket = edge(producer)
    if stream is not None:
        raise TypeError(
            "a file lane cannot wait for a stream; bring the bytes to the host through a lane and "
            "pass that copy's ticket"
        )
    return ticket, None if lease is None else lease._native, tensor


def _number(file: int | OpenFile) -> int:
    return file if isinstance(file, int) else file.fileno()


def _address(tensor: Tensor) -> int:
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"a file lane moves contiguous host memory; got {tensor.device} tensor")
    return tensor.data_ptr()
