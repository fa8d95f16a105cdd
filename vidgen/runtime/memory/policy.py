"""What each block keeps until the backward pass, where, and what it computes again."""

from collections.abc import Callable, Sequence
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
    added_s: float  # to a step: what is computed again, and copies that outlast the computation


def choose(
    costs: Sequence[BlockCost],
    *,
    device_limit: int,
    host_limit: int,
    bytes_per_s: float,
    window: int = 1,
) -> Choice:
    """The policy that adds least to a step's time among those whose activations fit, as far as a
    greedy search finds it: block by block the change that frees a byte for the fewest seconds.

    Raises ValueError where nothing fits. The last `window` blocks keep everything: the backward
    pass begins there.
    """
    current = [BlockMemory.KEEP] * len(costs)
    free_to_change = range(max(len(costs) - window, 0))
    state = _weigh(costs, current, bytes_per_s)
    while state.device_bytes > device_limit:
        best: tuple[float, int, Choice] | None = None
        tried: set[tuple[BlockCost, BlockMemory]] = set()
        for index in free_to_change:
            if (costs[index], current[index]) in tried:
                continue  # a block like one before it
            tried.add((costs[index], current[index]))
            for how in BlockMemory:
                changed = [*current[:index], how, *current[index + 1 :]]
                found = _weigh(costs, changed, bytes_per_s)
                freed = state.device_bytes - found.device_bytes
                if freed <= 0 or found.host_bytes > host_limit:
                    continue
                # No more than is needed counts as freed.
                needed = min(freed, state.device_bytes - device_limit)
                price = (found.added_s - state.added_s) / needed
                if best is None or (price, -freed) < best[:2]:
                    best = (price, -freed, found)
        if best is None:
            raise ValueError(
                f"activations of {device_limit} bytes on the device and {host_limit} on the host: "
                f"no policy fits, the least found is {state.device_bytes} and {state.host_bytes}"
            )
        state = best[2]
        current = list(state.blocks)
    return state


def _weigh(costs: Sequence[BlockCost], blocks: Sequence[BlockMemory], bytes_per_s: float) -> Choice:
    device = host = 0
    again = forward = 0.0
    for cost, how in zip(costs, blocks, strict=True):
        held = {
            BlockMemory.KEEP: cost.all_bytes,
            BlockMemory.OFFLOAD: cost.all_bytes,
            BlockMemory.PRODUCTS: cost.product_bytes,
            BlockMemory.OFFLOAD_PRODUCTS: cost.product_bytes,
            BlockMemory.RECOMPUTE: cost.input_bytes,
            BlockMemory.OFFLOAD_INPUTS: cost.input_bytes,
        }[how]
        forward += cost.forward_s
        if how.offloads:
            host += held
        else:
            device += held
        if how in (BlockMemory.RECOMPUTE, BlockMemory.OFFLOAD_INPUTS):
            again += cost.forward_s
        elif how in (BlockMemory.PRODUCTS, BlockMemory.OFFLOAD_PRODUCTS):
            again += cost.cheap_s
    # Out beside the forward pass, back beside the backward pass, which takes twice as long and
    # computes again what was not kept.
    copies = host / bytes_per_s
    late = max(0.0, copies - forward) + max(0.0, copies - 2 * forward - again)
    return Choice(tuple(blocks), device, host, again + late)
