"""Activation offload: saved tensors move to host memory and are prefetched for the backward pass.

Each block runs under autograd's saved-tensor hooks. A storage is copied once, however many views of
it are saved. The copy out starts during the forward pass, and the device memory is freed `window`
blocks later (the stream waits for the copy if needed); it is fetched when the backward pass is
`ahead` blocks away. All decisions follow program order, so peak device memory is the same in every
step.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef

from vidgen.runtime.memory.arena import Arena, Lease
from vidgen.runtime.memory.lane import Lane, Pending, current
from vidgen.runtime.memory.products import keep_products


@dataclass
class OffloadStats:
    """Counts since the start. A storage counts once, however often it is saved."""

    moved: int = 0  # storages copied out
    moved_bytes: int = 0
    repeats: int = 0  # saves of a storage that was already copied out
    kept_full: int = 0  # storages kept on the device for lack of room
    kept_full_bytes: int = 0
    fetched: int = 0  # storages copied back; the others were still on the device when needed
    late: int = 0  # of those, needed before their prefetch started
    waits: int = 0  # times the forward pass waited for room
    held_bytes: int = 0  # bytes in host memory now
    high_water: int = 0


class Offloader:
    """Moves what blocks save to leases of `arena` and back, on one lane per direction."""

    def __init__(
        self,
        arena: Arena,
        out: Lane,
        back: Lane,
        *,
        limit: int | None = None,
        window: int = 1,
        ahead: int = 2,
        smallest: int = 1 << 16,
    ) -> None:
        """`limit` is the number of arena bytes to use (None: all). Storages below `smallest` bytes
        are not offloaded."""
        if out.device != back.device:
            raise ValueError(f"lanes of one device: got {out.device} and {back.device}")
        if window < 1 or ahead < 1:
            raise ValueError(f"window {window} and ahead {ahead}: at least one block each")
        self.arena, self.device = arena, out.device
        self.limit = arena.nbytes if limit is None else limit
        self.stats = OffloadStats()
        self._out, self._back = out, back
        self._window, self._ahead, self._smallest = window, ahead, smallest
        self._lock = threading.RLock()  # the backward pass has a thread of its own
        self._blocks: list[_Block] = []
        self._known: dict[int, tuple[StorageWeakRef, weakref.ref[_Moved]]] = {}
        self._returning: deque[tuple[Pending, int]] = deque()  # leases whose copy back is in flight
        self._orphans: list[tuple[Pending, torch.UntypedStorage]] = []

    def run(self, module: nn.Module, call: Callable[..., Any], *inputs: Any) -> Any:
        """Run `call(*inputs)` and offload what it saves for the backward pass, except parameters of
        `module`."""
        if not torch.is_grad_enabled():
            return call(*inputs)
        block = self.begin(module)

        def pack(tensor: Tensor) -> Any:
            return self.pack(block, tensor)

        with saved_tensors_hooks(pack, self.unpack):
            return call(*inputs)

    def run_products(self, module: nn.Module, call: Callable[..., Any], *inputs: Any) -> Any:
        """Like `run`, but offloads only inputs and products; the rest is recomputed."""
        if not torch.is_grad_enabled():
            return call(*inputs)
        block = self.begin(module)

        def pack(tensor: Tensor) -> Any:
            return self.pack(block, tensor)

        with saved_tensors_hooks(pack, self.unpack):
            return keep_products(call, *inputs, pack=pack, unpack=self.unpack)

    def begin(self, module: nn.Module) -> "_Block":
        """Start the next block of the forward pass."""
        with self._lock:
            # A forward pass after a backward pass starts a new list of blocks.
            if self._blocks and not any(block.alive() for block in self._blocks):
                self._blocks.clear()
            for block in self._blocks[: len(self._blocks) - self._window]:
                self._let_go(block)
            block = _Block(len(self._blocks), module)
            self._blocks.append(block)
            return block

    def pack(self, block: "_Block", tensor: Tensor) -> "Tensor | _Saved":
        """Return what autograd keeps in place of the tensor."""
        if not block.moves(tensor, self.device):
            return tensor
        storage = tensor.untyped_storage()
        if storage.nbytes() < self._smallest:
            return tensor
        with self._lock:
            moved = self._find(storage, tensor._version)
            if moved is None:
                moved = self._send(block, tensor, storage)
                if moved is None:
                    return tensor
            else:
                self.stats.repeats += 1
            # A storage that a later block also saves is needed there first.
            block.add(moved)
        return _Saved(
            moved, tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset()), block
        )

    def unpack(self, saved: "Tensor | _Saved") -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        with self._lock:
            block = saved.block
            if not block.reached:
                block.reached = True
                last = max(block.index - self._ahead, 0)
                for near in reversed(self._blocks[last : block.index + 1]):
                    for moved in near.reversed():
                        self._fetch(moved)
            if saved.moved.storage is None:
                self.stats.late += 1
                self._fetch(saved.moved)
            storage = self._use(saved.moved)
        return torch.empty(0, dtype=saved.dtype, device=self.device).set_(
            storage, saved.offset, saved.shape, saved.stride
        )

    def close(self) -> None:
        """Wait for copies in flight. The arena stays open."""
        with self._lock:
            for pending, _ in (*self._orphans, *self._returning):
                pending.wait()
            self._orphans.clear()
            self._returning.clear()
            self._blocks.clear()
            self._known.clear()

    # One storage's way out and back --------------------------------------------------------------

    def _find(self, storage: torch.UntypedStorage, version: int) -> "_Moved | None":
        """The entry for the same storage and version, if it was offloaded. The weak reference
        guards against a reused address."""
        found = self._known.get(storage._cdata)
        if found is None or found[0].expired():
            return None
        moved = found[1]()
        return moved if moved is not None and moved.version == version else None

    def _send(
        self, block: "_Block", tensor: Tensor, storage: torch.UntypedStorage
    ) -> "_Moved | None":
        nbytes = storage.nbytes()
        lease = self._room(nbytes, block)
        if lease is None:
            self.stats.kept_full += 1
            self.stats.kept_full_bytes += nbytes
            return None
        out = self._out.copy_bytes(
            lease.pointer,
            storage.data_ptr(),
            nbytes,
            producer=current(self.device),
            lease=lease,
        )
        moved = _Moved(self, nbytes, storage, tensor.detach(), lease, out)
        self._forget_the_dead()
        self._known[storage._cdata] = (StorageWeakRef(storage), weakref.ref(moved))
        stats = self.stats
        stats.moved += 1
        stats.moved_bytes += nbytes
        stats.held_bytes += nbytes
        stats.high_water = max(stats.high_water, stats.held_bytes)
        return moved

    def _room(self, nbytes: int, block: "_Block") -> Lease | None:
        """A lease, if necessary after waiting for copies back. Leases of this forward pass are
        returned only in its backward pass, so waiting for them would deadlock."""
        self._reap()
        while True:
            if self.stats.held_bytes + nbytes <= self.limit and nbytes <= self.arena.nbytes:
                what = f"activations of block {block.index}"
                lease = self.arena.try_lease(nbytes, what=what)
                if lease is not None:
                    return lease
            if not self._returning:
                return None
            self.stats.waits += 1
            self._returning[0][0].wait()
            self._reap()

    def _let_go(self, block: "_Block") -> None:
        """Free device memory whose copy out is done; the stream waits for it if needed."""
        if block.gone:
            return
        block.gone = True
        for moved in block.reversed():
            if moved.leaving is not None:
                moved.check_version()
                moved.out.wait_on(current(self.device))
                moved.storage = moved.leaving = None

    def _fetch(self, moved: "_Moved") -> None:
        if moved.storage is not None:
            return
        assert moved.lease is not None
        # Allocate on the stream that uses it, so the memory belongs to that stream, which already
        # waits for the copy out.
        storage = torch.empty(moved.nbytes, dtype=torch.uint8, device=self.device).untyped_storage()
        moved.back = self._back.copy_bytes(
            storage.data_ptr(),
            moved.lease.pointer,
            moved.nbytes,
            producer=current(self.device),
            lease=moved.lease,
        )
        moved.storage = storage
        self.stats.fetched += 1
        self._return(moved, moved.back)

    def _use(self, moved: "_Moved") -> torch.UntypedStorage:
        assert moved.storage is not None
        if moved.back is not None:
            moved.back.wait_on(current(self.device))
            moved.awaited = True
        else:
            moved.check_version()  # not freed yet: the original bytes are still valid
        return moved.storage

    def _return(self, moved: "_Moved", after: Pending) -> None:
        if moved.lease is None:
            return
        moved.lease.give_back(after=after)
        moved.lease = None
        self._returning.append((after, moved.nbytes))
        self._reap()

    def _reap(self) -> None:
        while self._returning and self._returning[0][0].done():
            self.stats.held_bytes -= self._returning.popleft()[1]
        self._orphans = [orphan for orphan in self._orphans if not orphan[0].done()]

    def _drop(self, moved: "_Moved") -> None:
        """Drop an unreferenced entry; a copy may still be in flight."""
        with self._lock:
            under_way = moved.back if moved.back is not None and not moved.awaited else None
            if moved.leaving is not None:
                under_way = moved.out
            if under_way is not None and moved.storage is not None:
                self._orphans.append((under_way, moved.storage))
            self._return(moved, moved.out)

    def _forget_the_dead(self) -> None:
        if len(self._known) > 4096:
            self._known = {key: known for key, known in self._known.items() if known[1]()}


class _Block:
    """The state of one block in a forward pass."""

    def __init__(self, index: int, module: nn.Module) -> None:
        self.index = index
        self.gone = False  # its device memory was freed
        self.reached = False  # the backward pass has reached it
        self._moved: list[weakref.ref[_Moved]] = []
        parameters = list(module.parameters())
        self._own = {_storage_key(p) for p in parameters}
        # Gathered shards and autocast's copies of parameters have separate storages, recognisable
        # only by shape; an activation of such a shape is kept on the device too.
        self._sharded = any(isinstance(p, DTensor) for p in parameters)
        self._shapes = {p.shape for p in parameters}
        self._shapes |= {p.shape[::-1] for p in parameters}

    def add(self, moved: "_Moved") -> None:
        self._moved.append(weakref.ref(moved))

    def reversed(self) -> "list[_Moved]":
        """In the order the backward pass needs them."""
        return [moved for ref in reversed(self._moved) if (moved := ref()) is not None]

    def alive(self) -> bool:
        return any(ref() is not None for ref in self._moved)

    def moves(self, tensor: Tensor, device: torch.device) -> bool:
        """Whether a saved tensor may be offloaded; parameters, gathered or cast, may not."""
        copied = self._sharded or torch.is_autocast_enabled(device.type)
        return (
            tensor.device.type == device.type
            and type(tensor) in (Tensor, nn.Parameter)
            and tensor.layout == torch.strided
            and not (copied and tensor.shape in self._shapes)
            and _storage_key(tensor) not in self._own
        )


class _Moved:
    """A storage that is on the device, in flight, or in a lease."""

    def __init__(
        self,
        owner: Offloader,
        nbytes: int,
        storage: torch.UntypedStorage,
        leaving: Tensor,
        lease: Lease,
        out: Pending,
    ) -> None:
        self.nbytes = nbytes
        self.version = leaving._version
        self.storage: torch.UntypedStorage | None = storage
        self.leaving: Tensor | None = leaving  # until the device memory is freed
        self.lease: Lease | None = lease
        self.out = out
        self.back: Pending | None = None
        self.awaited = False  # a consuming stream waits for the copy back
        self._owner = owner

    def check_version(self) -> None:
        """Raise if the tensor was modified in place after it was saved."""
        if self.leaving is not None and self.leaving._version != self.version:
            raise RuntimeError(
                "a tensor needed for the gradient was modified in place after it was saved (shape "
                f"{tuple(self.leaving.shape)}, version {self.leaving._version}, expected "
                f"{self.version})"
            )

    def __del__(self) -> None:
        self._owner._drop(self)


@dataclass(frozen=True)
class _Saved:
    """A view of a storage that moved."""

    moved: _Moved
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    block: _Block


def _storage_key(tensor: Tensor) -> int:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return int(local.untyped_storage()._cdata)
