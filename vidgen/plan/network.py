"""How long collectives take: bytes over the slowest link, and the hops of a ring or a tree.

A hop's latency is what NCCL itself reckons with for large messages when it picks an algorithm
(its `Simple` protocol), so a ring over thousands of GPUs is bound by its hops, not its bytes.
"""

import math

from vidgen.runtime.observe.gpus import GPUS_PER_NODE, Gpu

_START_S = 8.4e-6  # of a collective
_NODE_HOP_S = 3.4e-6  # to a GPU of the same node
_NETWORK_HOP_S = 14e-6


def gather_s(gpu: Gpu, gpus: int, total_bytes: float, calls: int) -> float:
    """All-gather of `total_bytes` in so many calls, or their reduce-scatter, in a ring."""
    if gpus == 1:
        return 0.0
    nodes = math.ceil(gpus / GPUS_PER_NODE)
    hops = (gpus - nodes) * _NODE_HOP_S + (nodes - 1) * _NETWORK_HOP_S
    return total_bytes * (gpus - 1) / gpus / gpu.link(gpus) + calls * (_START_S + hops)


def all_reduce_s(gpu: Gpu, copies: int, across: int, total_bytes: float, calls: int) -> float:
    """All-reduce over `copies` GPUs that are spread over a machine of `across`, in a tree."""
    if copies == 1:
        return 0.0
    in_node = across <= GPUS_PER_NODE
    hop = _NODE_HOP_S if in_node else _NETWORK_HOP_S
    latency = _START_S + 2 * math.ceil(math.log2(copies)) * hop
    return 2 * total_bytes * (copies - 1) / copies / gpu.link(across) + calls * latency
