"""Who writes what: every box of every tensor by exactly one rank, and the ranks evenly loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vidgen.runtime.checkpoint.layout import DTYPE_NAMES, DTYPES, Box, local_part


@dataclass(frozen=True)
class Share:
    """One box of one tensor."""

    group: str
    name: str
    dtype: str
    shape: tuple[int, ...]  # of the whole tensor
    box: Box

    @property
    def size(self) -> int:
        return self.box.numel * DTYPES[self.dtype].itemsize


def held(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[Share, Tensor]:
    """What this rank holds: each share, and its data where it lies."""
    found = {}
    for group, members in tensors.items():
        for name, tensor in members.items():
            local, box = local_part(tensor)
            if tensor.dtype not in DTYPE_NAMES:
                raise TypeError(f"{group}/{name} is {tensor.dtype}, which safetensors cannot hold")
            if local.layout != torch.strided or local.is_quantized or local.is_meta:
                raise TypeError(f"{group}/{name} has no plain data: {local.layout}, {local.device}")
            share = Share(group, name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), box)
            found[share] = local
    return found


def shares_to_write(listings: list[list[Share]], rank: int) -> list[Share]:
    """The shares this rank writes. Every rank computes the same division, so none need be told."""
    holders: dict[Share, list[int]] = {}
    for holder, held in enumerate(listings):
        for share in held:
            if share.box.numel or not all(share.shape):
                holders.setdefault(share, []).append(holder)
    _check_cover(listings, list(holders))

    loads = [0] * len(listings)
    mine = []
    largest_first = sorted(holders, key=lambda s: (-s.size, s.group, s.name, s.box.start))
    # Shares with one holder leave no choice, so they come first.
    for share in sorted(largest_first, key=lambda s: len(holders[s]) > 1):
        writer = min(holders[share], key=lambda r: (loads[r], r))
        loads[writer] += share.size
        if writer == rank:
            mine.append(share)
    return mine


def _check_cover(listings: list[list[Share]], distinct: list[Share]) -> None:
    known: dict[tuple[str, str], tuple[str, tuple[int, ...], int]] = {}
    covered: dict[tuple[str, str], int] = {}
    for rank, held in enumerate(listings):
        for share in held:
            key = (share.group, share.name)
            dtype, shape, first = known.setdefault(key, (share.dtype, share.shape, rank))
            if (dtype, shape) != (share.dtype, share.shape):
                raise ValueError(
                    f"{share.group}/{share.name} is {share.dtype} {list(share.shape)} on rank "
                    f"{rank} and {dtype} {list(shape)} on rank {first}"
                )
    for share in distinct:
        key = (share.group, share.name)
        covered[key] = covered.get(key, 0) + share.box.numel
    for (group, name), (_, shape, _) in known.items():
        whole = Box((0,) * len(shape), shape).numel
        if covered.get((group, name), 0) != whole:
            raise ValueError(
                f"the ranks' parts of {group}/{name} hold {covered.get((group, name), 0)} of its "
                f"{whole} elements: they must cover it once"
            )
