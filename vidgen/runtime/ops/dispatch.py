"""Which implementation of an op runs: one rule, visible in `table()`, never a silent change.

VIDGEN_OPS=auto (the default) takes the compiled kernel where the device and type have one, else the
reference.
VIDGEN_OPS=reference|compiled|triton takes that one or raises.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from vidgen.errors import UserError
from vidgen.runtime import native
from vidgen.runtime.ops.catalogue import OPS

IMPLEMENTATIONS = ("reference", "compiled", "triton")
KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)

_wish: str | None = None  # of use(); None: what VIDGEN_OPS says
_chosen: dict[tuple[str, str, torch.dtype], str] = {}


@dataclass(frozen=True)
class Row:
    """One line of the table `vidgen doctor` prints."""

    op: str
    device: str
    implementation: str
    available: bool
    reason: str  # why it is not available
    chosen: bool


def choose(op: str, x: Tensor) -> str:
    """The name of the implementation that runs `op` on tensors like `x`."""
    if torch.compiler.is_compiling():
        return _decide(op, x.device.type, x.dtype)  # a constant of the graph
    chosen = _chosen.get((op, x.device.type, x.dtype))
    if chosen is None:
        chosen = _decide(op, x.device.type, x.dtype)
    return chosen


@torch.compiler.assume_constant_result
def _decide(op: str, device: str, dtype: torch.dtype) -> str:
    wish = wished()
    chosen = wish
    if wish == "auto":
        chosen = _automatic(op, device, dtype)
    elif why := why_not(op, wish, device, dtype):
        raise UserError(
            f"VIDGEN_OPS={wish}, but {op} cannot run so: {why}; VIDGEN_OPS=auto picks what can"
        )
    _chosen[op, device, dtype] = chosen
    return chosen


def _automatic(op: str, device: str, dtype: torch.dtype) -> str:
    return "reference" if why_not(op, "compiled", device, dtype) else "compiled"


def wished() -> str:
    """What the user asks for: auto or the name of an implementation."""
    wish = _wish or os.environ.get("VIDGEN_OPS") or "auto"
    if wish != "auto" and wish not in IMPLEMENTATIONS:
        raise UserError(f"VIDGEN_OPS is {wish!r}, expected auto, reference, compiled or triton")
    return wish


@contextmanager
def use(implementation: str) -> Iterator[None]:
    """Within the context this implementation runs, whatever VIDGEN_OPS says."""
    global _wish
    before = _wish
    _wish = implementation
    _chosen.clear()
    try:
        wished()
        yield
    finally:
        _wish = before
        _chosen.clear()


def why_not(op: str, implementation: str, device: str, dtype: torch.dtype) -> str:
    """Why an implementation cannot run; empty when it can."""
    if implementation == "reference":
        return ""
    if dtype != OPS[op].dtype and dtype not in KERNEL_TYPES:
        return f"it has no kernel for {str(dtype).removeprefix('torch.')}"
    if device not in ("cpu", "cuda"):
        return f"it has no kernel for the device {device}"
    if implementation == "compiled":
        return _why_not_compiled(device)
    return _why_not_triton(device) if OPS[op].triton else "it has no Triton version"


@cache
def _why_not_compiled(device: str) -> str:
    module = native.load()
    if module is None:
        return native.reason()
    if device == "cuda" and not module.cuda_architectures:
        return "vidgen._native is built without CUDA; type: VIDGEN_CUDA=1 pip install ."
    return ""


def _why_not_triton(device: str) -> str:
    if importlib.util.find_spec("triton") is None:
        return 'triton is not installed; type: pip install "vidgen[cuda]"'
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "triton runs on a CPU only in its interpreter, TRITON_INTERPRET=1"
    return ""


def table() -> list[Row]:
    """Every op's implementations on this machine's devices, for bfloat16."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows = []
    for device in devices:
        for op, entry in OPS.items():
            dtype = entry.dtype or torch.bfloat16
            reasons = {name: why_not(op, name, device, dtype) for name in IMPLEMENTATIONS}
            wish = wished()
            if wish == "auto":
                wish = _automatic(op, device, dtype)
            rows += [
                Row(op, device, name, not why, why, name == wish and not why)
                for name, why in reasons.items()
            ]
    return rows
