"""What each block keeps until the backward pass, where, and what it computes again."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import nn

from vidgen.runtime.memory.offload import Offloader
from vidgen.runtime.memory.products import keep_products
from vidgen.runtime.memory.recompute import recompute


class BlockMemory(Enum):
    KEEP = "keep"  # everything, on the device
    RECOMPUTE = "recompute"  # the inputs, on the device
    OFFLOAD_INPUTS = "offload inputs"  # the inputs, in host memory
    PRODUCTS = "products"  # inputs, matrix products and attention, on the device
    OFFLOAD_PRODUCTS = "offload products"  # the same in host memory
    OFFLOAD = "offload"  # everything, in host memory

    @property
    def offloads(self) -> bool:
        return self in (
            BlockMemory.OFFLOAD_INPUTS,
            BlockMemory.OFFLOAD_PRODUCTS,
            BlockMemory.OFFLOAD,
        )

    @property
    def recomputes(self) -> bool:
        """The whole block runs again in the backward pass."""
        return self in (BlockMemory.RECOMPUTE, BlockMemory.OFFLOAD_INPUTS)

    @property
    def keeps_products(self) -> bool:
        """Norms, modulation, rotation and activation functions run again."""
        return self in (BlockMemory.PRODUCTS, BlockMemory.OFFLOAD_PRODUCTS)


def arrange(
    counts: Sequence[int],
    recomputed: Sequence[int],
    sent: Sequence[int],
    *,
    inputs_sent: bool = False,
    products: bool = False,
) -> tuple[BlockMemory, ...]:
    """For each block in the order they run. Of each kind (dual and single blocks: `counts`) the
    first are computed again, with `inputs_sent` from host memory; the next ones send there all
    that they keep, or their products alone; the rest keep it."""
    first = BlockMemory.OFFLOAD_INPUTS if inputs_sent else BlockMemory.RECOMPUTE
    next_ones = BlockMemory.OFFLOAD_PRODUCTS if products else BlockMemory.OFFLOAD
    blocks: list[BlockMemory] = []
    for count, again, away in zip(counts, recomputed, sent, strict=True):
        kind = [first] * again + [next_ones] * away + [BlockMemory.KEEP] * count
        blocks += kind[:count]
    return tuple(blocks)


def run_block(
    how: BlockMemory,
    offloader: Offloader | None,
    module: nn.Module,
    call: Callable[..., Any],
    *inputs: Any,
) -> Any:
    """`call(*inputs)`, whose tensors are its arguments themselves; `module` has its parameters."""
    if how is BlockMemory.KEEP:
        return call(*inputs)
    if how is BlockMemory.RECOMPUTE:
        return recompute(call, *inputs)
    if how is BlockMemory.PRODUCTS:
        return keep_products(call, *inputs)
    if offloader is None:
        raise ValueError(f"{how.value} needs an offloader")
    if how is BlockMemory.OFFLOAD:
        return offloader.run(module, call, *inputs)
    if how is BlockMemory.OFFLOAD_INPUTS:
        return offloader.run(module, lambda *given: recompute(call, *given), *inputs)
    return offloader.run_products(module, call, *inputs)


@dataclass(frozen=True)
class BlockCost:
    """Measured, or from a model of the machine; bytes on the device, seconds of one pass."""

    forward_s: float
    cheap_s: float  # of the forward pass, without matrix products and attention
    input_bytes: int
    product_bytes: int  # inputs included
    all_bytes: int


@dataclass(frozen=True)
class Choice:
    blocks: tuple[BlockMemory, ...]
    device_bytes: int
    host_bytes: int
    again_s: float  # what is computed again
    late_s: float  # copies that outlast the computation beside them

    @property
    def added_s(self) -> float:
        """To a step, by not keeping everything."""
        return self.again_s + self.late_s


def choose_blocks(
    costs: Sequence[BlockCost],
    *,
    device_limit: float,
    host_limit: float,
    bytes_per_s: float,
    window: int = 1,
    allowed: Collection[BlockMemory] = tuple(BlockMemory),
) -> Choice:
    """The policy that adds least to a step's time among those whose activations fit, as far as a
    greedy search finds it: block by block the change that frees a byte for the fewest seconds.

    Raises ValueError where nothing fits. The last `window` blocks keep everything: the backward
    pass begins there.
    """
    current = [BlockMemory.KEEP] * len(costs)
    free_to_change = range(max(len(costs) - window, 0))
    state = _Sums.of(costs, current)
    while state.device > device_limit:
        best: tuple[float, float, int, BlockMemory, _Sums] | None = None
        tried: set[tuple[BlockCost, BlockMemory]] = set()
        added = state.again + state.late(bytes_per_s)
        for index in free_to_change:
            cost, now = costs[index], current[index]
            if (cost, now) in tried:
                continue  # a block like one before it
            tried.add((cost, now))
            for how in allowed:
                found = state.with_change(cost, now, how)
                freed = state.device - found.device
                if freed <= 0 or found.host > host_limit:
                    continue
                # No more than is needed counts as freed.
                needed = min(freed, state.device - device_limit)
                price = (found.again + found.late(bytes_per_s) - added) / needed
                if best is None or (price, -freed) < best[:2]:
                    best = (price, -freed, index, how, found)
        if best is None:
            raise ValueError(
                f"activations of {device_limit:.0f} bytes on the device and {host_limit:.0f} on "
                f"the host: no policy fits, the least found is {state.device} and {state.host}"
            )
        _, _, index, how, state = best
        current[index] = how
    return weigh(costs, current, bytes_per_s)


def weigh(costs: Sequence[BlockCost], blocks: Sequence[BlockMemory], bytes_per_s: float) -> Choice:
    """What a policy holds where, and what it adds to a step."""
    sums = _Sums.of(costs, blocks)
    return Choice(tuple(blocks), sums.device, sums.host, sums.again, sums.late(bytes_per_s))


@dataclass(frozen=True)
class _Sums:
    """Over all blocks: bytes on the device and the host, seconds forward and computed again."""

    device: int
    host: int
    forward: float
    again: float

    @classmethod
    def of(cls, costs: Sequence[BlockCost], blocks: Sequence[BlockMemory]) -> "_Sums":
        parts = [_held(cost, how) for cost, how in zip(costs, blocks, strict=True)]
        return cls(
            sum(device for device, _, _ in parts),
            sum(host for _, host, _ in parts),
            sum(cost.forward_s for cost in costs),
            sum(again for _, _, again in parts),
        )

    def with_change(self, cost: BlockCost, before: BlockMemory, after: BlockMemory) -> "_Sums":
        less, more = _held(cost, before), _held(cost, after)
        return _Sums(
            self.device + more[0] - less[0],
            self.host + more[1] - less[1],
            self.forward,
            self.again + (more[2] - less[2]),
        )

    def late(self, bytes_per_s: float) -> float:
        """Out beside the forward pass, back beside the backward pass, which takes twice as long
        and computes again what was not kept."""
        copies = self.host / bytes_per_s
        return max(0.0, copies - self.forward) + max(0.0, copies - 2 * self.forward - self.again)


def _held(cost: BlockCost, how: BlockMemory) -> tuple[int, int, float]:
    """Bytes on the device and on the host, seconds computed again."""
    if how.recomputes:
        held, again = cost.input_bytes, cost.forward_s
    elif how.keeps_products:
        held, again = cost.product_bytes, cost.cheap_s
    else:
        held, again = cost.all_bytes, 0.0
    return (0, held, again) if how.offloads else (held, 0, again)
