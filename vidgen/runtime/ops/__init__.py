"""The fused ops of a block: each has a reference, compiled kernels and a Triton version."""

from vidgen.runtime.ops.adamw import adamw
from vidgen.runtime.ops.attention_mlp import attention_mlp
from vidgen.runtime.ops.copy_rows import copy_rows
from vidgen.runtime.ops.dispatch import table, use
from vidgen.runtime.ops.gated_residual import gated_residual
from vidgen.runtime.ops.gated_residual_modulate import gated_residual_modulate
from vidgen.runtime.ops.gelu_tanh import gelu_tanh
from vidgen.runtime.ops.joint_qkv import joint_qkv, qkv_mlp
from vidgen.runtime.ops.merge import merge, merge_
from vidgen.runtime.ops.modulate import modulate
from vidgen.runtime.ops.qk_norm_rope import qk_norm_rope
from vidgen.runtime.ops.rope_tables import rope_tables
from vidgen.runtime.ops.split_streams import split_streams
from vidgen.runtime.ops.video_to_input import video_to_input

__all__ = [
    "modulate",
    "gated_residual",
    "gated_residual_modulate",
    "qk_norm_rope",
    "joint_qkv",
    "qkv_mlp",
    "split_streams",
    "attention_mlp",
    "gelu_tanh",
    "copy_rows",
    "video_to_input",
    "merge",
    "merge_",
    "adamw",
    "rope_tables",
    "table",
    "use",
]
