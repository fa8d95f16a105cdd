"""Ordered queues of copies between host and device, with both edges of every copy."""

from typing import Any, Final

import torch
from torch import Tensor

from vidgen.runtime import native
from vidgen.runtime.memory.arena import Lease
from vidgen.runtime.memory.simulated import SimulatedEngine


class _Host:
    """The calling thread as producer or consumer: it has written, or it will read, itself."""

    def __repr__(self) -> str:
        return "HOST"


HOST: Final = _Host()


class Pending:
    """A copy under way. What it brings is there for whoever has waited, on the host or on a
    stream."""

    def __init__(self, work: Any) -> None:
        self.native = work

    def done(self) -> bool:
        finished: bool = self.native.done()
        return finished

    def wait(self) -> None:
        """Hold the calling thread until the copy is complete; raises what made it fail."""
        self.native.wait()

    def wait_on(self, consumer: "torch.cuda.Stream | _Host") -> None:
        """Let `consumer` go on after the copy: a stream is made to wait on the device and this
        returns at once; HOST holds the calling thread."""
        if isinstance(consumer, _Host):
            self.wait()
        elif isinstance(consumer, torch.cuda.Stream):
            try:
                self.native.wait_on_stream(consumer.cuda_stream)
            except ValueError as error:
                raise TypeError(str(error)) from None
        else:
            raise TypeError(f"the consumer is a CUDA stream or HOST; got {consumer!r}")


class Ticket(Pending):
    """A copy to a tensor, which is had only through `read`: the second edge."""

    def __init__(self, work: Any, dst: Tensor) -> None:
        super().__init__(work)
        self._dst = dst

    def read(self, consumer: "torch.cuda.Stream | _Host") -> Tensor:
        """The destination, for use on `consumer`, which is made to wait as by `wait_on`."""
        self.wait_on(consumer)
        if self._dst.is_cuda and isinstance(consumer, torch.cuda.Stream):
            # Where its memory belongs to the lane's stream, the allocator must know of this one.
            self._dst.record_stream(consumer)
        return self._dst


Producer = torch.cuda.Stream | Pending | _Host
Consumer = torch.cuda.Stream | _Host


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
        self.stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            if engine is not None:
                raise ValueError("a CUDA lane has the device's engine, not a simulated one")
            index = self.device.index
            index = torch.cuda.current_device() if index is None else index
            torch.empty(0, device=self.device)  # torch and the lane share the device's context
            self.native = native.require().memory.cuda_lane(index)
            self.stream = torch.cuda.ExternalStream(self.native.stream, device=index)
        else:
            self.engine = engine or SimulatedEngine()
            # By this process's threads, as torch's own copies are.
            self.native = native.require().memory.simulated_lane(
                self.engine.native, torch.get_num_threads()
            )

    def to_device(self, src: Tensor, *, producer: Producer, lease: Lease | None) -> Ticket:
        """Copy into new memory on the lane's device."""
        if self.stream is None:
            return self.copy(src, torch.empty_like(src), producer=producer, lease=lease)
        with torch.cuda.stream(self.stream):
            dst = torch.empty_like(src, device=self.device)
        return self.copy(src, dst, producer=producer, lease=lease)

    def copy(self, src: Tensor, dst: Tensor, *, producer: Producer, lease: Lease | None) -> Ticket:
        """Queue dst <- src behind `producer`, whoever last writes src or uses dst: a stream, the
        ticket of another copy, or HOST where the calling thread has done so already.

        `lease` is the arena's piece that src or dst lies in, if either does; it cannot be given
        back before the copy is complete. Both tensors live until then.
        """
        if src.shape != dst.shape or src.dtype != dst.dtype:
            raise ValueError(f"{self.name}: copy of {_text(src)} to {_text(dst)}")
        if not _same_bytes(src, dst):
            raise ValueError(
                f"{self.name}: copy of {_text(src)} with strides {src.stride()} to "
                f"{dst.stride()}; a lane moves bytes as they lie, make it contiguous first"
            )
        work = self._submit(
            dst.data_ptr(), src.data_ptr(), src.nbytes, producer, lease, keep=(src, dst)
        )
        return Ticket(work, dst)

    def copy_bytes(
        self, dst: int, src: int, nbytes: int, *, producer: Producer, lease: Lease | None
    ) -> Pending:
        """`copy` between addresses. The caller keeps both alive until the copy is complete, or
        until whatever uses their memory next waits for it."""
        return Pending(self._submit(dst, src, nbytes, producer, lease, keep=None))

    def _submit(
        self, dst: int, src: int, nbytes: int, producer: Producer, lease: Lease | None, keep: Any
    ) -> Any:
        stream, ticket = edge(producer)
        if stream is not None and self.stream is None:
            raise TypeError("a lane without a CUDA device cannot wait for a stream")
        piece = None if lease is None else lease._native
        return self.native.copy(dst, src, nbytes, stream, ticket, piece, keep)

    def reap(self) -> None:
        """Let go of the tensors of copies that are complete; every copy does so too."""
        self.native.reap()


def current(device: torch.device) -> Consumer:
    """Who computes on the device here: its current stream, or the calling thread itself."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else HOST


def edge(producer: Producer) -> tuple[int | None, Any]:
    """The producer as the native code takes it: a stream's address, a ticket, or neither."""
    if isinstance(producer, torch.cuda.Stream):
        return producer.cuda_stream, None
    if isinstance(producer, Pending):
        return None, producer.native
    if isinstance(producer, _Host):
        return None, None
    raise TypeError(f"the producer is a CUDA stream, a ticket or HOST; got {producer!r}")


def _same_bytes(src: Tensor, dst: Tensor) -> bool:
    """Whether both lie in memory as one run, in the same order."""
    if src.is_contiguous() and dst.is_contiguous():
        return True
    return src.stride() == dst.stride() and is_one_run(src)


def is_one_run(tensor: Tensor) -> bool:
    """Whether its elements fill one piece of memory, each once, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _text(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
