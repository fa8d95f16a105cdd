"""From files to the memory of a GPU: read, check and copy overlap, a window of each at a time."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vidgen.runtime.checkpoint.jobs import Statistics
from vidgen.runtime.checkpoint.reader import Piece, read
from vidgen.runtime.memory import HOST, Arena, Lane, Ticket

_BATCH = 64 * 2**20  # bytes read at once
_UNDER_WAY = 3  # batches: one being read, one on its way to the device, one beginning
_ALIGN = 256


@dataclass(frozen=True)
class Move:
    """A run of bytes in a slice, and where it goes."""

    piece: Piece
    begin: int
    target: Tensor  # uint8, one dimension


def read_to_devices(path: Path, moves: Sequence[Move]) -> list[Statistics]:
    """Carry out the moves; work enqueued on the current streams afterwards finds them done."""
    if not moves:
        return []
    devices = {move.target.device for move in moves}
    lanes = {device: Lane(device, name="loading") for device in devices}
    # Of the calling thread: the targets may still be in use there.
    streams = {d: torch.cuda.current_stream(d) if d.type == "cuda" else HOST for d in devices}
    arena = Arena(_UNDER_WAY * (_BATCH + _ALIGN), name="loading")
    last: dict[torch.device, Ticket] = {}

    def carry_out(batch: list[Move]) -> Statistics:
        lease = arena.lease(sum(_room(move) for move in batch), timeout=None)
        spans, sources, at = [], [], 0
        memory = lease.tensor((lease.nbytes,))
        for move in batch:
            sources.append(memory[at : at + move.target.nbytes])
            spans.append(move.piece.contiguous(move.begin, sources[-1]))
            at += _room(move)
        try:
            statistics = read(path, spans)
        except BaseException:
            lease.give_back()
            raise
        for move, source in zip(batch, sources, strict=True):
            device = move.target.device
            last[device] = lanes[device].copy(
                source, move.target, producer=streams[device], lease=lease
            )
        lease.give_back(after=last[batch[-1].target.device])
        return statistics

    with ThreadPoolExecutor(_UNDER_WAY) as pool:
        futures = [pool.submit(carry_out, batch) for batch in _batches(moves)]
        try:
            statistics = [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            for device, ticket in last.items():
                ticket.read(streams[device])
                ticket.wait()
    arena.close()
    return statistics


def _room(move: Move) -> int:
    return -(-move.target.nbytes // _ALIGN) * _ALIGN


def _batches(moves: Sequence[Move]) -> Iterator[list[Move]]:
    """Moves of at most _BATCH bytes together, large ones cut."""
    batch: list[Move] = []
    size = 0
    for move in moves:
        for at in range(0, move.target.nbytes, _BATCH):
            part = Move(move.piece, move.begin + at, move.target[at : at + _BATCH])
            if size + _room(part) > _BATCH:
                yield batch
                batch, size = [], 0
            batch.append(part)
            size += _room(part)
    if batch:
        yield batch
