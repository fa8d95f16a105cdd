"""The published VAE file into the diffusers module, whose tensor names are the same."""

import torch
from torch import nn

from vidgen.models.tensor_files import PathOrTensors, check_tensors, open_source


@torch.no_grad()
def load_weights(vae: nn.Module, source: PathOrTensors, device: torch.device | str = "cpu") -> None:
    """Fill the module; a wrong, missing or extra tensor is an error."""
    with open_source(source) as tensors:
        check_tensors(tensors, {name: tuple(t.shape) for name, t in vae.state_dict().items()})
        if any(param.is_meta for param in vae.parameters()):
            vae.to_empty(device=device)
        for name, target in vae.state_dict().items():
            info = tensors.infos[name]
            whole = torch.empty(info.shape, dtype=info.dtype)
            tensors.read(name, whole)
            target.copy_(whole)
