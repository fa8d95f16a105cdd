"""How a context group arranges its attention: ring, Ulysses or both, by measured rates.

An arrangement is a degree: how many neighbours exchange heads. An attention call, forward and
backward, costs its compute plus the communication that compute does not hide. Bytes are what one
rank sends.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vidgen.runtime.parallel.ulysses import shares

BACKWARD = 2.5  # times the forward's FLOPs: five products of a block's size for two
WIDE = 4  # bytes of the fp32 that gradients of keys and values travel in


@dataclass(frozen=True)
class Shape:
    """One attention call over a context group: its tokens are those of all ranks."""

    batch: int
    tokens: int
    heads: int
    head_dim: int
    itemsize: int


@dataclass(frozen=True)
class Rates:
    """What one rank of a group does per second, by degree where the partners differ."""

    flops: float  # of attention
    hop: Mapping[int, float]  # bytes sent along a ring of groups of this degree
    exchange: Mapping[int, float]  # bytes sent in an all-to-all among that many neighbours


def ring_bytes(shape: Shape, lengths: Sequence[int], rank: int) -> tuple[int, int]:
    """(forward, backward). Keys and values make all hops but the last; their gradients all."""
    token = 2 * shape.batch * shape.heads * shape.head_dim
    if len(lengths) == 1:
        return 0, 0
    passed_on = sum(lengths) - lengths[(rank + 1) % len(lengths)]
    forward = token * shape.itemsize * passed_on
    wide = max(WIDE, shape.itemsize)
    return forward, forward + token * wide * sum(lengths)


def ulysses_bytes(
    shape: Shape, lengths: Sequence[int], rank: int, replicated: int = 0
) -> tuple[int, int]:
    """(forward, backward). What a rank keeps for itself is not counted."""
    heads = shares(shape.heads, len(lengths))
    mine, others = heads[rank], shape.heads - heads[rank]
    unit = shape.batch * shape.head_dim * shape.itemsize
    own, rest = lengths[rank], sum(lengths) - lengths[rank]
    copies = replicated * (len(lengths) - 1)
    forward = unit * (3 * own * others + (rest + copies) * mine)
    return forward, unit * (3 * rest * mine + (own + replicated) * others)


def seconds(shape: Shape, ranks: int, degree: int, rates: Rates) -> float:
    """Of one attention call, forward and backward, on the busiest rank."""
    ring = ranks // degree
    heads = math.ceil(shape.heads / degree)  # of the busiest rank
    group = math.ceil(shape.tokens / ring)  # tokens of one Ulysses group
    block = 4 * shape.batch * group**2 * heads * shape.head_dim / rates.flops
    total = ring * block * (1 + BACKWARD)
    if degree > 1:
        lengths = shares(group, degree)
        total += sum(ulysses_bytes(shape, lengths, 0)) / rates.exchange[degree]
    if ring > 1:
        keys = 2 * shape.batch * group * heads * shape.head_dim
        hop = keys * shape.itemsize / rates.hop[degree]
        gradients = keys * max(WIDE, shape.itemsize) / rates.hop[degree]
        total += (ring - 1) * max(0.0, hop - block)
        # A hop of gradients starts when its block is done, and the next block hides it.
        total += (ring - 1) * max(0.0, hop + gradients - BACKWARD * block) + gradients
    return total


def choose(shape: Shape, ranks: int, degrees: Sequence[int], rates: Rates) -> int:
    """The fastest degree; of equals the larger, which has fewer hops to wait for."""
    return min(degrees, key=lambda degree: (seconds(shape, ranks, degree, rates), -degree))


@dataclass(frozen=True)
class Arrangement:
    """How a context group arranges its attention: a fixed degree, or the fastest by its rates."""

    ranks: int
    degrees: Sequence[int]
    ulysses: int | None = None
    rates: Rates | None = None  # None only with a fixed degree

    def degree(self, shape: Shape) -> int:
        """How many neighbours exchange heads in one attention call."""
        if self.ulysses is not None:
            return self.ulysses
        assert self.rates is not None
        return choose(shape, self.ranks, self.degrees, self.rates)
