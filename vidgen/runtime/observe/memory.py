"""Peak memory of a process."""

import resource
import sys

import torch


def peak_memory_gb(device: torch.device | str) -> float:
    """Peak in 1e9 bytes: of torch's allocations on a GPU, of the whole process on a CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
