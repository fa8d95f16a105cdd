"""Ordered queues of asynchronous copies between host and device.

Every copy has two edges: it waits for the producer of its source, and its consumer waits for it.
"""

from typing import Any, Final

import torch
from torch import Tensor

from vidgen.runtime import native
from vidgen.runtime.memory.arena import Lease
from vidgen.runtime.memory.simulated import SimulatedEngine


class _Host:
    """The calling thread as producer or consumer of a copy."""

    def __repr__(self) -> str:
        return "HOST"


HOST: Final = _Host()


class Pending:
    """A copy in flight. Its result is valid after a wait, on the host or on a stream."""

    def __init__(self, work: Any) -> None:
        self.native = work

    def done(self) -> bool:
        finished: bool = self.native.done()
        return finished

    def wait(self) -> None:
        """Block the calling thread until the copy is complete; raises the error if it failed."""
        self.native.wait()

    def wait_on(self, consumer: "torch.cuda.Stream | _Host") -> None:
        """Make `consumer` wait for the copy. A stream waits on the device and this returns at once;
        HOST blocks the calling thread."""
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
    """A copy to a tensor, accessible only through `read`."""

    def __init__(self, work: Any, dst: Tensor) -> None:
        super().__init__(work)
        self._dst = dst

    def read(self, consumer: "torch.cuda.Stream | _Host") -> Tensor:
        """Return the destination for use on `consumer`, after `wait_on(consumer)`."""
        self.wait_on(consumer)
        if self._dst.is_cuda and isinstance(consumer, torch.cuda.Stream):
            # The memory belongs to the lane's stream: tell the allocator about the consumer's.
            self._dst.record_stream(consumer)
        return self._dst


Producer = torch.cuda.Stream | Pending | _Host
Consumer = torch.cuda.Stream | _Host


class Lane:
    """An in-order queue of copies: a separate stream on CUDA, else a simulated engine, which
    several lanes may share."""

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
                raise ValueError("a CUDA lane uses the device's copy engine, not a simulated one")
            index = self.device.index
            index = torch.cuda.current_device() if index is None else index
            torch.empty(0, device=self.device)  # torch and the lane share the device's context
            self.native = native.require().memory.cuda_lane(index)
            self.stream = torch.cuda.ExternalStream(self.native.stream, device=index)
        else:
            self.engine = engine or SimulatedEngine()
            # Copied by this process's threads, like torch's own copies.
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
        """Queue dst <- src after `producer`, the last writer of src or user of dst: a stream, the
        ticket of another copy, or HOST if the calling thread has already finished.

        `lease` is the lease that contains src or dst, if any; it cannot be returned before the
        copy is complete. Both tensors are kept alive until then.
        """
        if src.shape != dst.shape or src.dtype != dst.dtype:
            raise ValueError(f"{self.name}: copy of {_text(src)} to {_text(dst)}")
        if not _same_bytes(src, dst):
            raise ValueError(
                f"{self.name}: copy of {_text(src)} with strides {src.stride()} to "
                f"{dst.stride()}; a lane copies raw bytes; make it contiguous first"
            )
        work = self._submit(
            dst.data_ptr(), src.data_ptr(), src.nbytes, producer, lease, keep=(src, dst)
        )
        return Ticket(work, dst)

    def copy_bytes(
        self, dst: int, src: int, nbytes: int, *, producer: Producer, lease: Lease | None
    ) -> Pending:
        """`copy` between addresses. The caller keeps both alive until the copy is complete or the
        next user of the memory waits for it."""
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
        """Release the tensors of completed copies; submitting a copy does so as well."""
        self.native.reap()


def current(device: torch.device) -> Consumer:
    """The consumer on a device: its current stream, or HOST for the calling thread."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else HOST


def edge(producer: Producer) -> tuple[int | None, Any]:
    """The producer in the form native code takes: a stream's address, a ticket, or neither."""
    if isinstance(producer, torch.cuda.Stream):
        return producer.cuda_stream, None
    if isinstance(producer, Pending):
        return None, producer.native
    if isinstance(producer, _Host):
        return None, None
    raise TypeError(f"the producer is a CUDA stream, a ticket or HOST; got {producer!r}")


def _same_bytes(src: Tensor, dst: Tensor) -> bool:
    """Whether both are dense in memory, with the same element order."""
    if src.is_contiguous() and dst.is_contiguous():
        return True
    return src.stride() == dst.stride() and is_one_run(src)


def is_one_run(tensor: Tensor) -> bool:
    """Whether its elements fill a contiguous range of memory exactly once, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _text(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
