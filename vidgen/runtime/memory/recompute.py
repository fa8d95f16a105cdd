"""Running a block again in the backward pass instead of keeping what its forward pass made."""

from collections.abc import Callable
from typing import TypeVar

from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def recompute(block: Callable[..., T], *inputs: object) -> T:
    """`block(*inputs)`, keeping only the inputs until the backward pass.

    No block draws random numbers, so the generators need not be put back.
    """
    result: T = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result
