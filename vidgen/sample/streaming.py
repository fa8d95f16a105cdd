"""Blocks of the model that come to the device while the ones before them run."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vidgen.errors import UserError
from vidgen.models.mmdit import MMDiT, modulation_layers
from vidgen.models.mmdit.model import Context, Stream
from vidgen.runtime.memory import HOST, Arena, Lane, Lease, Ticket

_ALIGN = 256  # bytes: where a tensor starts within its block
SLOTS = 2  # one block runs while the next one arrives


@dataclass(frozen=True)
class _Place:
    """Where in the bytes of its block a parameter lies."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def view(self, block_bytes: Tensor) -> Tensor:
        end = self.offset + math.prod(self.shape) * self.dtype.itemsize
        return block_bytes[self.offset : end].view(self.dtype).view(self.shape)


class BlockStream:
    """The weights of every block in pinned host memory, and of some of them on the device too.

    Modulation stays in host memory: it is tabulated before sampling. The module's own parameters
    are the host's; a block runs with the device's in their place, so nothing on it changes.
    """

    def __init__(
        self, model: MMDiT, device: torch.device, dtype: torch.dtype, lane: Lane | None = None
    ) -> None:
        """`model` is on the meta device; its weights are to be loaded next."""
        self.device = device
        self._lane = lane or Lane(device, name="weights")
        tabulated = {
            id(param) for layer in modulation_layers(model).values() for param in layer.parameters()
        }
        blocks = [*model.double_blocks, *model.single_blocks]
        layouts = [_layout(block, tabulated, dtype) for block in blocks]
        self._places = [places for places, _ in layouts]
        self.sizes = [size for _, size in layouts]
        self._arena = Arena(sum(self.sizes), name="weights")
        self._leases: list[Lease] = []
        self._host: list[Tensor] = []
        for number, (block, places) in enumerate(zip(blocks, self._places, strict=True)):
            lease = self._arena.lease(self.sizes[number], what=f"block {number}")
            self._leases.append(lease)
            self._host.append(lease.tensor((self.sizes[number],)))
            for name, place in places.items():
                _put(block, name, place.view(self._host[number]))
        self.around_bytes = 0  # of the device, for what lies around the blocks
        for name, param in list(model.named_parameters()):
            if param.is_meta:
                # What is tabulated is read once, so plain host memory will do.
                where = torch.device("cpu") if id(param) in tabulated else device
                _put(model, name, torch.empty(param.shape, dtype=dtype, device=where))
                self.around_bytes += 0 if id(param) in tabulated else param.nbytes
        self._resident: dict[int, dict[str, Tensor]] = {}
        self._slots: list[Tensor] = []
        self._in_slot: dict[int, tuple[int, Ticket]] = {}  # slot -> block, its copy
        self._streamed: list[int] = []

    def keep(self, device_bytes: int) -> int:
        """Hold as many blocks on the device as fit; returns how many are streamed each pass."""
        streamed = choose_streamed(self.sizes, device_bytes)
        if streamed == self._streamed and len(self._resident) + len(streamed) == len(self.sizes):
            return len(streamed)
        self.release()
        self._streamed = streamed
        for number in range(len(self.sizes)):
            if number not in streamed:
                here = torch.empty(self.sizes[number], dtype=torch.uint8, device=self.device)
                ticket = self._copy(number, here)
                self._resident[number] = self._views(number, ticket.read(self._consumer()))
        if streamed:
            room = max(self.sizes[number] for number in streamed)
            self._slots = [
                torch.empty(room, dtype=torch.uint8, device=self.device) for _ in range(SLOTS)
            ]
        return len(streamed)

    def release(self) -> None:
        """Give the device's memory back; the weights stay in host memory."""
        for _, ticket in self._in_slot.values():
            ticket.wait()
        self._in_slot.clear()
        self._slots.clear()
        self._resident.clear()
        self._streamed = []
        if self._on_gpu:
            torch.cuda.empty_cache()  # in pieces of other sizes what comes next could not use it

    def close(self) -> None:
        self.release()
        self._host.clear()
        for lease in self._leases:
            lease.give_back()
        self._leases.clear()
        self._arena.close()

    @property
    def device_bytes(self) -> int:
        """Of the blocks alone."""
        held = sum(self.sizes[number] for number in self._resident)
        return held + sum(slot.nbytes for slot in self._slots)

    def run_block(self, index: int, block: nn.Module, stream: Stream, context: Context) -> Stream:
        weights = self._resident.get(index) or self._arrived(index)
        self._fetch_after(index)
        result: Stream = functional_call(block, weights, (*stream, context))
        return result

    def _arrived(self, index: int) -> dict[str, Tensor]:
        if not self._slots:
            raise ValueError("keep() says how much memory the blocks may take; call it first")
        # Not there on the first pass, or when a block before this one was left out.
        found = [ticket for block, ticket in self._in_slot.values() if block == index]
        ticket = found[0] if found else self._fetch(index, slot=0)
        return self._views(index, ticket.read(self._consumer()))

    def _fetch_after(self, index: int) -> None:
        """Send for the next streamed block, the first one again after the last."""
        if not self._streamed:
            return
        place = bisect_left(self._streamed, index + 1) % len(self._streamed)
        coming = self._streamed[place]
        if any(block == coming for block, _ in self._in_slot.values()):
            return
        running = [slot for slot, (block, _) in self._in_slot.items() if block == index]
        self._fetch(coming, slot=1 - running[0] if running else 0)

    def _fetch(self, index: int, slot: int) -> Ticket:
        ticket = self._copy(index, self._slots[slot][: self.sizes[index]])
        self._in_slot[slot] = (index, ticket)
        return ticket

    def _copy(self, index: int, here: Tensor) -> Ticket:
        # Behind everything queued so far on the device, which may still use that memory.
        return self._lane.copy(
            self._host[index], here, producer=self._consumer(), lease=self._leases[index]
        )

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _consumer(self) -> Any:
        return torch.cuda.current_stream(self.device) if self._on_gpu else HOST

    def _views(self, index: int, block_bytes: Tensor) -> dict[str, Tensor]:
        return {name: place.view(block_bytes) for name, place in self._places[index].items()}


def choose_streamed(sizes: Sequence[int], device_bytes: int) -> list[int]:
    """As few blocks as must be, evenly spread, so that each arrives while resident ones run."""
    for count in range(len(sizes) + 1):
        streamed = [(2 * i + 1) * len(sizes) // (2 * count) for i in range(count)]
        if _needed(sizes, streamed) <= device_bytes:
            return streamed
    least = _needed(sizes, range(len(sizes)))
    raise UserError(
        f"the model's blocks need at least {least / 1e9:.1f} GB of the device's memory, "
        f"{max(0, device_bytes) / 1e9:.1f} GB are left for them; give a larger --memory, or fewer "
        "frames or pixels"
    )


def _needed(sizes: Sequence[int], streamed: Sequence[int]) -> int:
    chosen = set(streamed)
    held = sum(size for number, size in enumerate(sizes) if number not in chosen)
    return held + SLOTS * max((sizes[number] for number in chosen), default=0)


def _layout(
    block: nn.Module, left_out: set[int], dtype: torch.dtype
) -> tuple[dict[str, _Place], int]:
    places, offset = {}, 0
    for name, param in block.named_parameters():
        if id(param) not in left_out:
            places[name] = _Place(offset, tuple(param.shape), dtype)
            offset += -(-param.numel() * dtype.itemsize // _ALIGN) * _ALIGN
    return places, offset


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    *path, leaf = name.split(".")
    owner = module.get_submodule(".".join(path))
    setattr(owner, leaf, nn.Parameter(value, requires_grad=False))
