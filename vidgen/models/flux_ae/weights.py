"""Published names and shapes of the diffusers module's tensors."""

import re

from torch import nn

from vidgen.models.tensor_files import Shapes

LAYERS = {
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
LEVELS = 4


def published_name(name: str) -> str:
    """The published name of a tensor of the diffusers module."""
    for theirs, published in LAYERS.items():
        name = name.replace(f".{theirs}.", f".{published}.")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    name = re.sub(r"(down|up)_blocks\.(\d)", lambda m: f"{m[1]}.{_level(m[1], int(m[2]))}", name)
    name = re.sub(r"(down|up)samplers\.0", r"\1sample", name)
    return name.replace(".resnets.", ".block.")


def _level(way: str, index: int) -> int:
    """Published levels count from the pixels in both halves; diffusers' decoder counts upwards."""
    return index if way == "down" else LEVELS - 1 - index


def published_shapes(ae: nn.Module) -> Shapes:
    return {
        # Attention was published as 1x1 convolutions.
        name: (*shape, 1, 1) if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name) else shape
        for name, shape in (
            (published_name(name), tuple(tensor.shape)) for name, tensor in ae.state_dict().items()
        )
    }
