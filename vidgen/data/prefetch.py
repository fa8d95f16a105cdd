"""A thread that makes batches, encoding what they lack, before training asks for them."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


class Prefetcher(Generic[Made]):
    """Calls `make` up to `most` times before its results are asked for, which come in order.

    On a CUDA device its work goes to a stream of its own: the kernels share the device with those
    of the training step and take the gaps that these leave. On a CPU the thread shares the cores.
    Either way the encoders' memory is needed beside the step's.
    """

    def __init__(
        self,
        make: Callable[[], Made],
        tensors: Callable[[Made], list[Tensor]],
        most: int,
        device: torch.device,
    ) -> None:
        """`tensors` names a result's tensors on the device. `make` must not lead to whoever closes
        this, which it would keep alive."""
        self._make, self._tensors = make, tensors
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._device = device
        self._room = threading.Semaphore(most)
        self._ready: SimpleQueue[tuple[Made, torch.cuda.Event | None] | BaseException] = (
            SimpleQueue()
        )
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="vidgen-ahead", daemon=True)
        self._thread.start()

    def next(self) -> Made:
        ready = self._ready.get()
        if isinstance(ready, BaseException):
            self._ready.put(ready)  # asked again, it says so again
            raise ready
        self._room.release()
        made, event = ready
        if event is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(event)
            for tensor in self._tensors(made):
                tensor.record_stream(stream)
        return made

    def close(self) -> None:
        """After the result under way, if there is one."""
        self._stopping = True
        self._room.release()
        self._thread.join()

    def _run(self) -> None:
        try:
            with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                while True:
                    self._room.acquire()
                    if self._stopping:
                        return
                    made = self._make()
                    event = None if self._stream is None else self._stream.record_event()
                    self._ready.put((made, event))
        except BaseException as error:
            self._ready.put(error)
