"""What accelerators offer, by their makers' data sheets."""

import difflib
from dataclasses import dataclass

from vidgen.errors import UserError

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Gpu:
    """Rates are one direction's; a link's data sheet counts both, so these are half of it."""

    name: str
    flops: float  # dense bf16 FLOP/s
    memory: float  # bytes
    memory_bandwidth: float  # bytes/s
    node_link: float  # bytes/s to the other GPUs of the node
    network: float  # bytes/s to other nodes, one adapter a GPU
    host_link: float  # bytes/s to the host's memory: PCIe 4 or 5, 16 lanes
    dollars_per_hour: float | None  # None: say it with --price

    def link(self, gpus: int) -> float:
        """Bytes/s of a collective over `gpus`: its slowest hop decides."""
        return self.node_link if gpus <= GPUS_PER_NODE else self.network


GPUS_PER_NODE = 8
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 312 * TERA, 80 * GIGA, 2.04 * TERA, 300 * GIGA, 25 * GIGA, 32 * GIGA, None),
        Gpu("h100", 989 * TERA, 80 * GIGA, 3.35 * TERA, 450 * GIGA, 50 * GIGA, 64 * GIGA, None),
        Gpu("h200", 989 * TERA, 141 * GIGA, 4.8 * TERA, 450 * GIGA, 50 * GIGA, 64 * GIGA, 2.0),
        Gpu("b200", 2250 * TERA, 180 * GIGA, 7.7 * TERA, 900 * GIGA, 50 * GIGA, 64 * GIGA, None),
    )
}


def of_device(name: str) -> Gpu | None:
    """The figures of what a driver calls, say, "NVIDIA H200"."""
    return next((gpu for gpu in GPUS.values() if gpu.name.upper() in name.upper()), None)


def gpu_named(name: str) -> Gpu:
    found = GPUS.get(name.lower())
    if found is None:
        close = difflib.get_close_matches(name.lower(), GPUS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(GPUS)}"
        raise UserError(f"no figures for the GPU {name!r} ({hint})")
    return found
