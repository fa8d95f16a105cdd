"""What a run starts from: its launch, its dtype, its first weights, parts that fit together."""

import os
from collections.abc import Sequence

import torch

from vidgen.models.mmdit import MMDiT, load_weights
from vidgen.runtime.native import cpu_has_bf16


def load_initial(model: MMDiT, path: str, reinitialise: Sequence[str], seed: int) -> None:
    """Published weights, a run or one of its steps; an image model becomes a video one.

    The layers of `reinitialise` are drawn from the seed instead, the same on every rank.
    """
    load_weights(
        model,
        path,
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
