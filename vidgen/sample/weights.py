"""Where a run's weights are, and a fingerprint of weights that no file layout changes."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from vidgen.errors import UserError
from vidgen.runtime import checkpoint

_SAMPLES = 1024  # numbers of each tensor that are looked at: training changes them all


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """16 hex digits from evenly spaced numbers of every tensor, rounded to bf16 as they run."""
    digest = hashlib.sha256()
    for name, param in sorted(model.named_parameters()):
        flat = param.detach().reshape(-1)
        places = torch.linspace(0, len(flat) - 1, min(_SAMPLES, len(flat)), dtype=torch.float64)
        picked = flat[places.long().to(flat.device)].to(torch.bfloat16).cpu()
        digest.update(f"{name} {tuple(param.shape)}".encode())
        digest.update(picked.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def find_step(path: Path) -> Path:
    """The step of a checkpoint that a path means: its newest, or itself."""
    for root in (path / "checkpoints", path):
        if newest := checkpoint.latest(root):
            return newest
    if (path / "manifest.json").is_file():
        return path
    raise UserError(
        f"{path} is no run and no checkpoint: expected a run directory (with checkpoints/step-...)"
        " or one step's directory; for published weights add --recipe recipes/stage3.yaml"
    )
