"""Ordered queues of copies between host and device, with both edges of every copy."""

from typing import Final

import torch
from torch import Tensor

from vidgen.runtime.memory.arena import Lease
from vidgen.runtime.memory.simulated import PendingCopy, SimulatedEngine


class _Host:
    """The calling thread as producer or consumer: it has written, or it will read, itself."""

    def __repr__(self) -> str:
        return "HOST"


HOST: Final = _Host()


class Ticket:
    """A copy under way; its destination is had only through `read`, which is the second edge."""

    def __init__(self, lane: "Lane", dst: Tensor, work: "torch.cuda.Event | PendingCopy") -> None:
        self._lane, self._dst, self._work = lane, dst, work

    def done(self) -> bool:
        if isinstance(self._work, PendingCopy):
            return self._lane._engine.poll(self._work)
        return self._work.query()

    def wait(self) -> None:
        """Hold the calling thread until the copy is complete."""
        if isinstance(self._work, PendingCopy):
            self._lane._engine.wait(self._work)
        else:
            self._work.synchronize()

    def read(self, consumer: "torch.cuda.Stream | _Host") -> Tensor:
        """The destination, for use on `consumer`: a stream is made to wait on the device and this
        returns at once; HOST holds the calling thread."""
        if isinstance(consumer, _Host):
            self.wait()
        elif isinstance(consumer, torch.cuda.Stream):
            if isinstance(self._work, PendingCopy):
                raise TypeError("a copy on the CPU is read by HOST; it has no stream to wait on")
            consumer.wait_event(self._work)
            if self._dst.is_cuda:
                # Its memory belongs to the lane's stream; the allocator must know of this one.
                self._dst.record_stream(consumer)
        else:
            raise TypeError(f"the consumer is a CUDA stream or HOST; got {consumer!r}")
        return self._dst


class Lane:
    """A queue of copies that keep their order. On CUDA a stream of its own; without a CUDA device
    a simulated engine, which several lanes may share."""

    def __init__(
        self,
        device: torch.device | str,
        *,
        engine: SimulatedEngine | None = None,
        name: str = "lane",
    ) -> None:
        self.device = torch.device(device)
        self.name = name
        self._stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            if engine is not None:
                raise ValueError("a CUDA lane has the device's engine, not a simulated one")
            self._stream = torch.cuda.Stream(self.device)
        else:
            self._engine = engine or SimulatedEngine()
            self._queue = self._engine.new_queue()

    def to_device(
        self, src: Tensor, *, producer: "torch.cuda.Stream | Ticket | _Host", lease: Lease | None
    ) -> Ticket:
        """Copy into new memory on the lane's device."""
        if self._stream is None:
            return self.copy(src, torch.empty_like(src), producer=producer, lease=lease)
        with torch.cuda.stream(self._stream):
            dst = torch.empty(src.shape, dtype=src.dtype, device=self.device)
        return self.copy(src, dst, producer=producer, lease=lease)

    def copy(
        self,
        src: Tensor,
        dst: Tensor,
        *,
        producer: "torch.cuda.Stream | Ticket | _Host",
        lease: Lease | None,
    ) -> Ticket:
        """Queue dst <- src behind `producer`, whoever last writes src or uses dst: a stream, the
        ticket of another copy, or HOST where the calling thread has done so already.

        `lease` is the arena's piece that src or dst lies in, if either does; it cannot be given
        back before the copy is complete.
        """
        if src.shape != dst.shape or src.dtype != dst.dtype:
            raise ValueError(f"{self.name}: copy of {_text(src)} to {_text(dst)}")
        if not isinstance(producer, torch.cuda.Stream | Ticket | _Host):
            raise TypeError(f"the producer is a CUDA stream, a ticket or HOST; got {producer!r}")
        ticket = Ticket(self, dst, self._submit(src, dst, producer))
        if lease is not None:
            lease.used_by(ticket)
        return ticket

    def _submit(
        self, src: Tensor, dst: Tensor, producer: "torch.cuda.Stream | Ticket | _Host"
    ) -> "torch.cuda.Event | PendingCopy":
        if self._stream is None:
            if isinstance(producer, torch.cuda.Stream):
                raise TypeError("a lane without a CUDA device cannot wait for a stream")
            after: PendingCopy | None = None
            if isinstance(producer, Ticket):
                work = producer._work
                if isinstance(work, PendingCopy) and producer._lane._engine is self._engine:
                    after = work
                else:
                    producer.wait()  # this engine cannot see that copy end
            return self._engine.submit(self._queue, lambda: _copy_now(src, dst), after)
        if isinstance(producer, torch.cuda.Stream):
            self._stream.wait_stream(producer)
        elif isinstance(producer, Ticket):
            if isinstance(producer._work, PendingCopy):
                producer.wait()
            else:
                self._stream.wait_event(producer._work)
        with torch.cuda.stream(self._stream):
            dst.copy_(src, non_blocking=True)
            for tensor in (src, dst):
                if tensor.is_cuda:
                    tensor.record_stream(self._stream)
            event = torch.cuda.Event()
            event.record(self._stream)
        return event


def _copy_now(src: Tensor, dst: Tensor) -> None:
    with torch.no_grad():
        dst.copy_(src)


def _text(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
