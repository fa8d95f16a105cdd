"""What a run starts from: its launch, its dtype, its first weights, parts that fit together."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from vidgen.models.mmdit import MMDiT, load_weights
from vidgen.runtime import checkpoint
from vidgen.runtime.native import cpu_has_bf16


def first_weights(path: str) -> Path:
    """Published weights, or another run's newest or named step."""
    return checkpoint.latest(Path(path) / "checkpoints") or Path(path)


def load_initial(model: MMDiT, path: str, reinitialise: Sequence[str], seed: int) -> None:
    """An image model becomes a video one; the layers of `reinitialise` are drawn anew from the
    seed, the same on every rank."""
    load_weights(
        model,
        first_weights(path),
        adapt=True,
        reinitialise=reinitialise,
        generator=torch.Generator().manual_seed(seed),
    )


def launch_command(world: int) -> str:
    """What starts this many ranks."""
    if world == 1:
        return "vidgen train"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    nodes = f"--nnodes {world // here} " if here < world else ""
    return f"torchrun {nodes}--nproc-per-node {here} -m vidgen train"


def compute_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Of matrix products: bf16 wherever the machine multiplies it fast."""
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
    fast = device.type == "cuda" or cpu_has_bf16()
    return torch.bfloat16 if fast else torch.float32
