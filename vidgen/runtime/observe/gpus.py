"""Data sheets of accelerators: one table for the planner and for MFU."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from vidgen.errors import UserError

TERA, GIGA = 1e12, 1e9

# Dense tensor-core TFLOP/s (sparsity figures halved). "tf32" is float32 where torch may use TF32
# for products.
_A100 = {"bfloat16": 312, "float16": 312, "tf32": 156, "float32": 19.5}
_HOPPER = {"float8": 1979, "bfloat16": 989, "float16": 989, "tf32": 495, "float32": 67}
_HOPPER_PCIE = {"float8": 1513, "bfloat16": 756, "float16": 756, "tf32": 378, "float32": 51}
_HOPPER_NVL = {"float8": 1671, "bfloat16": 835, "float16": 835, "tf32": 418, "float32": 60}
_B200 = {"float8": 4500, "bfloat16": 2250, "float16": 2250, "tf32": 1125, "float32": 75}

# By what a driver calls the device; the first match counts.
_BOARDS: tuple[tuple[str, Mapping[str, float]], ...] = (
    (r"\bMIG\b", {}),  # a slice of a GPU has no data sheet
    (r"\bA100\b", _A100),
    (r"\bH100 PCIe\b", _HOPPER_PCIE),
    (r"\bH[12]00 NVL\b", _HOPPER_NVL),
    (r"\b(H100|H200)\b", _HOPPER),
    (r"\bB200\b", _B200),
)


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


def _gpu(
    name: str,
    tflops: Mapping[str, float],
    memory: float,
    bandwidth: float,
    node_link: float,
    network: float,
    host_link: float,
    price: float | None = None,
) -> Gpu:
    """In the data sheets' units: GB, TB/s, GB/s."""
    return Gpu(
        name,
        flops=tflops["bfloat16"] * TERA,
        memory=memory * GIGA,
        memory_bandwidth=bandwidth * TERA,
        node_link=node_link * GIGA,
        network=network * GIGA,
        host_link=host_link * GIGA,
        dollars_per_hour=price,
    )


GPUS_PER_NODE = 8
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100", _A100, 80, 2.04, 300, 25, 32),
        _gpu("h100", _HOPPER, 80, 3.35, 450, 50, 64),
        _gpu("h200", _HOPPER, 141, 4.8, 450, 50, 64, 2.0),
        _gpu("b200", _B200, 180, 7.7, 900, 50, 64),
    )
}


def board_tflops(device_name: str) -> Mapping[str, float]:
    """Dense TFLOP/s by dtype of what a driver calls, say, "NVIDIA H100 PCIe"; empty if unknown."""
    return next((rates for pattern, rates in _BOARDS if re.search(pattern, device_name)), {})


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
