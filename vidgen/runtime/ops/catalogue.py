"""The list of ops. Dispatch, `vidgen doctor`, the benchmarks and the tests go by it: an entry here
with a file missing elsewhere fails tests/runtime/ops/test_catalogue.py, which names the file."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Op:
    """One op, whose kernels are <name>_forward and, with a gradient, <name>_backward."""

    backward: bool = True
    triton: bool = True  # whether vidgen/runtime/ops/triton has it
    # The ops whose kernels it runs, where it has none of its own.
    made_of: tuple[str, ...] = ()
    # One more dtype of the tensor its implementation is chosen by, beside the floats'.
    dtype: torch.dtype | None = None


OPS = {
    "modulate": Op(),
    "gated_residual": Op(),
    "gated_residual_modulate": Op(),
    "qk_norm_rope": Op(),
    "joint_qkv": Op(made_of=("qk_norm_rope", "copy_rows", "gelu_tanh")),
    "split_streams": Op(made_of=("copy_rows",)),
    "attention_mlp": Op(made_of=("copy_rows", "gelu_tanh")),
    "gelu_tanh": Op(),
    "copy_rows": Op(backward=False),
    "video_to_input": Op(backward=False, dtype=torch.uint8),
    "merge": Op(),
    "adamw": Op(backward=False),
}


def kernels(name: str) -> tuple[str, ...]:
    """The kernels of an op itself, as csrc/include/vidgen/ops.h lists them."""
    op = OPS[name]
    if op.made_of:
        return ()
    return (f"{name}_forward", f"{name}_backward") if op.backward else (f"{name}_forward",)
