"""A copy of a rank's state in host memory, laid out as the files that will hold it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vidgen.runtime.checkpoint import staging, transfer
from vidgen.runtime.checkpoint.plan import FilePlan, PlannedFile
from vidgen.runtime.checkpoint.shares import Share
from vidgen.runtime.memory import Lane, Ticket


class Snapshot:
    """Ordered before whatever is done to the tensors after it was made: what lies on the CPU has
    been copied by then, and the streams of a GPU wait for its copies."""

    def __init__(self, plan: FilePlan, sources: Mapping[Share, Tensor]) -> None:
        self.plan = plan
        self._lease, self._image = staging.lend(plan.image)
        self._lanes: dict[torch.device, tuple[Lane, Ticket]] = {}
        try:
            self._copy(sources)
        except BaseException:
            self.lose()  # some of it may still be on its way
            raise

    def _copy(self, sources: Mapping[Share, Tensor]) -> None:
        at_once: list[tuple[Tensor, Tensor]] = []
        for file in self.plan.files:
            header = torch.frombuffer(bytearray(file.header), dtype=torch.uint8)
            self._image[file.start : file.start + len(header)] = header
            for share, offset in file.members:
                source = sources[share]
                if not source.numel():
                    continue
                begin = file.start + offset
                to = self._image[begin : begin + share.size].view(source.dtype).view(source.shape)
                if source.is_cuda:
                    self._enqueue(source, to)
                elif source.is_contiguous():
                    at_once.append((to, source))
                else:
                    to.copy_(source)
        transfer.copy(at_once, torch.get_num_threads())
        for device, (_, last) in self._lanes.items():
            last.read(torch.cuda.current_stream(device))

    def _enqueue(self, source: Tensor, to: Tensor) -> None:
        device = source.device
        lane = self._lanes[device][0] if device in self._lanes else Lane(device, name="checkpoint")
        stream = torch.cuda.current_stream(device)
        self._lanes[device] = lane, lane.copy(source, to, producer=stream, lease=self._lease)

    def wait(self) -> None:
        """Until all of it is there."""
        for _, last in self._lanes.values():
            last.wait()

    def data(self, file: PlannedFile) -> Tensor:
        """The bytes of a file, and what fills its last page."""
        return self._image[file.start :]

    def release(self) -> None:
        """Give the memory back to the next save."""
        self.wait()
        del self._image  # a view: the memory is lent again when there is none
        self._lease.give_back()

    def lose(self) -> None:
        """Do without the memory from now on, because something may still use it."""
        staging.lose(self._lease)
