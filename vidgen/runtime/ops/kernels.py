"""Runs the chosen kernel of an op: compiled, or Triton."""

import importlib
from typing import Any

import torch
from torch import Tensor

from vidgen.runtime import native
from vidgen.runtime.ops import dispatch

_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3, torch.int32: 4}


def run(op: str, direction: str, *arguments: Any) -> None:
    """Fills the output tensors among the arguments.

    The arguments are the fields of the kernel's struct in csrc/include/vidgen/ops.h, in order;
    direction is forward or backward.
    """
    x: Tensor = arguments[0]
    chosen = dispatch.choose(op, x)
    if chosen == "compiled":
        run_compiled(f"{op}_{direction}", x.device, arguments)
    elif chosen == "triton":
        module = importlib.import_module(f"vidgen.runtime.ops.triton.{op}")
        getattr(module, direction)(*arguments)
    else:
        raise RuntimeError(
            f"torch.ops.vidgen.{op} has kernels only; vidgen.runtime.ops.{op} has a reference too"
        )


def run_compiled(kernel: str, device: torch.device, arguments: tuple[Any, ...]) -> None:
    """Calls a kernel of the extension module; its last tensors are filled."""
    module = native.load()
    if module is None:
        raise RuntimeError(native.reason())
    fields = [_view(a) if isinstance(a, Tensor) else a for a in arguments]
    if device.type == "cpu":
        getattr(module.cpu, kernel)(*fields, torch.get_num_threads())
        return
    with torch.cuda.device(device):
        floats = getattr(module.cuda, kernel + "_workspace")(*fields)
        workspace = torch.empty(floats, dtype=torch.float32, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream
        getattr(module.cuda, kernel)(*fields, stream, workspace.data_ptr())


def _view(tensor: Tensor) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    return tensor.data_ptr(), _CODES[tensor.dtype], tensor.shape, tensor.stride()


def rows(tensor: Tensor) -> Tensor:
    """The tensor itself if its last dimension is contiguous, as the kernels need, else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
