"""A short name for weights, whatever file and layout held them."""

import hashlib

import torch
from torch import nn

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
