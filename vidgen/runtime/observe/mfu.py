"""Model and hardware FLOP utilisation, and the peak rates they are a fraction of."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vidgen.runtime.observe import gpus


@dataclass(frozen=True)
class Peak:
    """The rate that utilisation is a fraction of, and where the figure comes from."""

    flops_per_s: float
    dtype: str
    device: str
    measured: bool

    def __str__(self) -> str:
        source = "measured with a large matmul" if self.measured else "data sheet, dense"
        return f"{self.flops_per_s / 1e12:.4g} TFLOP/s {self.dtype} on {self.device} ({source})"


def mfu(model_flops: float, seconds: float, peak: Peak, devices: int = 1) -> float:
    """Fraction of the peak spent on FLOPs the model needs; `model_flops` is over all devices."""
    return model_flops / (seconds * devices * peak.flops_per_s)


def hfu(hardware_flops: float, seconds: float, peak: Peak, devices: int = 1) -> float:
    """The same with recompute counted: how busy the hardware was."""
    return mfu(hardware_flops, seconds, peak, devices)


def known_peak(device_name: str, dtype: torch.dtype) -> float | None:
    """Dense FLOP/s by the data sheet, or None for a GPU or dtype that the table lacks."""
    key = str(dtype).removeprefix("torch.").split("_")[0]
    if key == "float32" and torch.get_float32_matmul_precision() != "highest":
        key = "tf32"
    tflops = gpus.board_tflops(device_name).get(key)
    return None if tflops is None else tflops * gpus.TERA


@functools.cache
def peak(device: torch.device | str, dtype: torch.dtype) -> Peak:
    """The peak of `device`: by the data sheet if known, else measured now (about a second)."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    label = str(dtype).removeprefix("torch.")
    known = known_peak(name, dtype)
    if known is not None:
        return Peak(known, label, name, measured=False)
    return Peak(measure_matmul(device, dtype), label, name, measured=True)


def measure_matmul(device: torch.device, dtype: torch.dtype, budget_s: float = 1.0) -> float:
    """Best FLOP/s of square products, each size double the last while the budget allows."""
    best = 0.0
    began = time.perf_counter()
    for size in (512, 1024, 2048, 4096, 8192):
        a = torch.randn(size, size, device=device).to(dtype)
        b = torch.randn(size, size, device=device).to(dtype)
        # The layout of a linear layer's forward pass: the one every library is fastest at.
        multiply = functools.partial(torch.nn.functional.linear, a, b)
        _seconds(multiply, device)  # warms up caches, threads and the choice of kernel
        taken = min(_seconds(multiply, device) for _ in range(3))
        best = max(best, 2 * size**3 / taken)
        # The next size costs 8 times as much, four times over.
        if time.perf_counter() - began + 32 * taken > budget_s:
            break
    return best


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    _settle(device)
    began = time.perf_counter()
    work()
    _settle(device)
    return time.perf_counter() - began


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
