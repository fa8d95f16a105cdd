"""vidgen's own kernels as torch operators: attention with its log-sum-exp, and its gradients."""

from typing import Any

import torch
from torch import Tensor

from vidgen.runtime import native
from vidgen.runtime.attention.backends import FLOAT, HALF, Backend, Grads, Saved, rows
from vidgen.runtime.attention.mask import BlockMask
from vidgen.runtime.ops import kernels
from vidgen.runtime.ops.registry import define


def _readable(x: Tensor) -> Tensor:
    """As the kernels read it; the GPU's take 16 bytes at a time."""
    x = rows(x)
    if x.device.type != "cuda":
        return x
    steps = (x.data_ptr(), *(stride * x.itemsize for stride in x.stride()[:-1]))
    return (
        x
        if all(step % 16 == 0 for step in steps)
        else x.clone(memory_format=torch.contiguous_format)
    )


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None,
    blocks: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    q, k, v = (_readable(x) for x in (q, k, v))
    out, lse = _outputs(q, k, v, key_lengths, blocks, scale)
    kernels.run_compiled(
        "attention_forward", q.device, (q, k, v, key_lengths, blocks, out, lse, scale)
    )
    return out, lse


def _outputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None,
    blocks: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    B, L, H, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((B, H, L), dtype=torch.float32)


def _backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None,
    blocks: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, out, grad_out = (_readable(x) for x in (q, k, v, out, grad_out))
    lse = lse.contiguous()
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    grads = _gradients(grad_out, grad_lse, q, k, v, key_lengths, blocks, out, lse, scale)
    given = (q, k, v, key_lengths, blocks, out, lse, grad_out, grad_lse)
    kernels.run_compiled("attention_backward", q.device, (*given, *grads, scale))
    return grads


def _gradients(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None,
    blocks: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _gradient(
    ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None
) -> tuple[Tensor | None, ...]:
    q, k, v, key_lengths, blocks, out, lse = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    grads = torch.ops.vidgen.attention_backward(
        grad_out, grad_lse, q, k, v, key_lengths, blocks, out, lse, ctx.scale
    )
    return (*grads, None, None, None)


define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? key_lengths, Tensor? blocks, float scale)"
    " -> (Tensor out, Tensor lse)",
    _forward,
    _outputs,
    _gradient,
    _setup_context,
)
define(
    "attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v,"
    " Tensor? key_lengths, Tensor? blocks, Tensor out, Tensor lse, float scale)"
    " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)",
    _backward,
    _gradients,
)


def _run(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None, scale: float
) -> tuple[Tensor, Tensor]:
    lengths = blocks = None
    if mask is not None and mask.key_lengths_B is not None:
        # int32 holds no larger length, and none is needed: more than there are means all.
        most = k.shape[1]
        lengths = mask.key_lengths_B.clamp(0, most).to(q.device, torch.int32)
    if mask is not None and mask.blocks is not None:
        blocks = mask.blocks.to(q.device).contiguous().view(torch.uint8)
    out, lse = torch.ops.vidgen.attention(q, k, v, lengths, blocks, scale)
    return out, lse


def _block_backward(grad_out: Tensor, saved: Saved, scale: float) -> Grads:
    q, k, v, out, lse, _ = saved
    grads: Grads = torch.ops.vidgen.attention_backward(
        grad_out, None, q, k, v, None, None, out, lse, scale
    )
    return grads


def _missing(device: str) -> str:
    module = native.load()
    if module is None:
        return f"is not built: {native.reason()}"
    if not hasattr(getattr(module, device, None), "attention_forward"):
        return "is built without CUDA; type: VIDGEN_CUDA=1 pip install ."
    return ""


def _missing_on_cpu() -> str:
    return _missing("cpu")


def _missing_on_cuda() -> str:
    return _missing("cuda")


BOTH_MASKS = frozenset({"block", "length"})

NATIVE_CPU = Backend(
    "native",
    frozenset({"cpu"}),
    FLOAT,
    run=_run,
    block_backward=_block_backward,
    missing=_missing_on_cpu,
    head_dim_max=256,
    masks=BOTH_MASKS,
)
NATIVE_CUDA = Backend(
    "native",
    frozenset({"cuda"}),
    HALF,
    run=_run,
    block_backward=_block_backward,
    missing=_missing_on_cuda,
    head_dim_multiple=8,
    head_dim_max=256,
    masks=BOTH_MASKS,
)
