"""A copy engine for machines without one: it copies late, in an order a seed decides."""

from vidgen.runtime import native


class SimulatedEngine:
    """Serves any number of lanes. Each is first in first out, as a CUDA stream is; which lane
    moves next is drawn from the seed, and nothing moves before somebody waits or asks: whoever
    reads a destination or reuses a source without its ticket gets wrong bytes."""

    def __init__(
        self, seed: int = 0, latency_s: float = 0.0, bytes_per_s: float | None = None
    ) -> None:
        """`latency_s`: the mean of the seconds a copy takes at least, each drawn from the seed;
        its bytes at `bytes_per_s` (None: at once) come on top."""
        memory = native.require().memory
        self.native = memory.SimulatedEngine(seed, latency_s, bytes_per_s or 0.0)
