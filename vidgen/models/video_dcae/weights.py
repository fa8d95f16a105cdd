"""Loads and saves the Video DC-AE with the published tensor names."""

import os
import re

import torch
from torch import nn

from vidgen.models.tensor_files import (
    PathOrTensors,
    TensorInfo,
    check_tensors,
    destination_file,
    open_source,
    write_tensors,
)
from vidgen.models.video_dcae.model import VideoDCAE

# vidgen's name to the published name, within a block.
BLOCK = {
    "conv1": "main.conv1.conv",
    "conv2": "main.conv2.conv",
    "norm": "main.conv2.norm",
    "attention.qkv": "context_module.main.qkv.conv",
    "attention.aggregate_near": "context_module.main.aggreg.0.0",
    "attention.aggregate_head": "context_module.main.aggreg.0.1",
    "attention.proj": "context_module.main.proj.conv",
    "attention.norm": "context_module.main.proj.norm",
    "mlp.inverted": "local_module.main.inverted_conv.conv",
    "mlp.depth": "local_module.main.depth_conv.conv",
    "mlp.point": "local_module.main.point_conv.conv",
    "mlp.norm": "local_module.main.point_conv.norm",
}
ENDS = {
    "encoder.project_in": "encoder.project_in.conv",
    "encoder.project_out.conv": "encoder.project_out.main.op_list.0.conv",
    "decoder.project_in.conv": "decoder.project_in.main.conv",
    "decoder.norm_out": "decoder.project_out.op_list.0",
    "decoder.project_out": "decoder.project_out.op_list.2.conv",
}


def published_name(name: str, model: VideoDCAE) -> str:
    module, _, kind = name.rpartition(".")
    if module in ENDS:
        return f"{ENDS[module]}.{kind}"
    match = re.fullmatch(r"(encoder|decoder)\.stages\.(\d)\.(down|up|blocks)\.(.+)", module)
    assert match, name
    side, stage, part, rest = match.groups()
    at = f"{side}.stages.{stage}.op_list"
    if part == "down":  # the last of its stage
        return f"{at}.{model.config.encoder_depths[int(stage)]}.main.{rest}.{kind}"
    if part == "up":  # the first
        return f"{at}.0.main.conv.{rest}.{kind}"
    index, _, layer = rest.partition(".")
    after_up = side == "decoder" and int(stage) < model.config.stages - 1
    return f"{at}.{int(index) + after_up}.{BLOCK[layer]}.{kind}"


@torch.no_grad()
def load_weights(
    model: VideoDCAE, source: PathOrTensors, device: torch.device | str = "cpu"
) -> None:
    """Fill the model; a wrong, missing or extra tensor is an error."""
    state = model.state_dict()
    names = {name: published_name(name, model) for name in state}
    with open_source(source) as tensors:
        check_tensors(tensors, {names[name]: tuple(t.shape) for name, t in state.items()})
        if any(param.is_meta for param in model.parameters()):
            model.to_empty(device=device)
        for name, target in model.state_dict().items():
            info = tensors.infos[names[name]]
            whole = torch.empty(info.shape, dtype=info.dtype)
            tensors.read(names[name], whole)
            target.copy_(whole)


def save_weights(model: nn.Module, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write the model as one safetensors file in the published names."""
    assert isinstance(model, VideoDCAE)
    state = {published_name(name, model): t for name, t in model.state_dict().items()}
    infos = {name: TensorInfo(t.dtype, tuple(t.shape)) for name, t in state.items()}
    tensors = ((name, tensor.detach().cpu()) for name, tensor in state.items())
    write_tensors(destination_file(path, overwrite), infos, tensors, {})
