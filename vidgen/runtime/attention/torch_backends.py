"""The attention torch brings: its fused kernels through their aten ops, FlexAttention, and math."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from vidgen.runtime.attention.backends import (
    DOUBLE,
    FLOAT,
    HALF,
    Backend,
    Forwarded,
    Grads,
    Saved,
)
from vidgen.runtime.attention.mask import K_BLOCK, Q_BLOCK, BlockMask

CPU, CUDA = frozenset({"cpu"}), frozenset({"cuda"})


# aten's kernels take (B, H, L, D); the op is looked up when it is called, for not every build of
# torch has each.


def _heads_first(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.transpose(1, 2) for x in tensors)


def _tokens_first(*tensors: Tensor) -> Grads:
    q, k, v = (x.transpose(1, 2) for x in tensors)
    return q, k, v


# ---- CPU ----


def _flash_cpu(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Forwarded:
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = op(*_heads_first(q, k, v), scale=scale)
    return out.transpose(1, 2), lse, ()


def _flash_cpu_backward(grad_out: Tensor, saved: Saved, scale: float) -> Grads:
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    heads = _heads_first(grad_out, *saved[:4])
    return _tokens_first(*op(*heads, saved.lse, 0.0, False, scale=scale))


# ---- CUDA: flash ----


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Forwarded:
    op = torch.ops.aten._scaled_dot_product_flash_attention
    # Older builds round the length of the LSE up; the backward wants it as it came.
    out, lse, cum_q, cum_k, max_q, max_k, seed, offset, _ = op(*_heads_first(q, k, v), scale=scale)
    rest = (lse, cum_q, cum_k, max_q, max_k, seed, offset)
    return out.transpose(1, 2), lse[..., : q.shape[1]].clone(), rest


def _flash_backward(grad_out: Tensor, saved: Saved, scale: float) -> Grads:
    full_lse, cum_q, cum_k, max_q, max_k, seed, offset = saved.rest
    op = torch.ops.aten._scaled_dot_product_flash_attention_backward
    heads = _heads_first(grad_out, *saved[:4])
    more = (cum_q, cum_k, max_q, max_k, 0.0, False, seed, offset)
    return _tokens_first(*op(*heads, full_lse, *more, scale=scale))


def _flash_block_backward(grad_out: Tensor, saved: Saved, scale: float) -> Grads:
    q, k, lse = saved.q, saved.k, saved.lse
    seed = torch.zeros(2, dtype=torch.uint64, device=q.device)  # unused: there is no dropout
    rest = (lse, None, None, q.shape[1], k.shape[1], seed, seed)
    return _flash_backward(grad_out, saved._replace(rest=rest), scale)


# ---- CUDA: memory-efficient ----


def _efficient(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Forwarded:
    op = torch.ops.aten._scaled_dot_product_efficient_attention
    # The LSE comes padded to a multiple of 32, and the backward wants the padding.
    out, lse, seed, offset = op(*_heads_first(q, k, v), None, True, scale=scale)
    return out.transpose(1, 2), lse[..., : q.shape[1]].clone(), (lse, seed, offset)


def _efficient_backward(grad_out: Tensor, saved: Saved, scale: float) -> Grads:
    full_lse, seed, offset = saved.rest
    op = torch.ops.aten._scaled_dot_product_efficient_attention_backward
    grad_out, q, k, v, out = _heads_first(grad_out, *saved[:4])
    wanted = [True, True, True, False]
    grads = op(grad_out, q, k, v, None, out, full_lse, seed, offset, 0.0, wanted, scale=scale)
    return _tokens_first(*grads[:3])


def _efficient_block_backward(grad_out: Tensor, saved: Saved, scale: float) -> Grads:
    # Rows that pad the LSE to a multiple of 32 have probability exp(score - inf) = 0.
    lse = torch.nn.functional.pad(saved.lse, (0, -saved.lse.shape[-1] % 32), value=torch.inf)
    seed = torch.zeros((), dtype=torch.int64, device=lse.device)  # unused: there is no dropout
    return _efficient_backward(grad_out, saved._replace(rest=(lse, seed, seed)), scale)


# ---- CUDA: cuDNN ----


def _cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Forwarded:
    op = torch.ops.aten._scaled_dot_product_cudnn_attention
    out, lse, cum_q, cum_k, max_q, max_k, seed, offset, _ = op(
        *_heads_first(q, k, v), None, True, scale=scale
    )
    # (B, H, Lq, 1) where cuDNN itself chooses the shape
    rest = (lse, cum_q, cum_k, max_q, max_k, seed, offset)
    return out.transpose(1, 2), lse.reshape(q.shape[0], q.shape[2], -1).clone(), rest


def _cudnn_backward(grad_out: Tensor, saved: Saved, scale: float) -> Grads:
    full_lse, cum_q, cum_k, max_q, max_k, seed, offset = saved.rest
    op = torch.ops.aten._scaled_dot_product_cudnn_attention_backward
    heads = _heads_first(grad_out, *saved[:4])
    more = (seed, offset, None, cum_q, cum_k, max_q, max_k, 0.0, False)
    return _tokens_first(*op(*heads, full_lse, *more, scale=scale))


def _cudnn_block_backward(grad_out: Tensor, saved: Saved, scale: float) -> Grads:
    q, k, lse = saved.q, saved.k, saved.lse[..., None]  # (B, H, Lq, 1)
    seed = torch.zeros((), dtype=torch.int64, device=q.device)  # unused: there is no dropout
    rest = (lse, None, None, q.shape[1], k.shape[1], seed, seed)
    return _cudnn_backward(grad_out, saved._replace(rest=rest), scale)


@cache
def _cudnn_missing() -> str:
    if not torch.cuda.is_available():
        return "needs a GPU, and torch sees none"
    if not torch.backends.cudnn.is_available():
        return "torch is built without cuDNN"
    if torch.backends.cudnn.version() < 90100:
        return f"needs cuDNN 9.1, found {torch.backends.cudnn.version()}"
    if torch.cuda.get_device_capability() < (8, 0):
        return "needs compute capability 8.0"
    return ""


# ---- FlexAttention ----


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None, scale: float
) -> tuple[Tensor, Tensor]:
    block_mask = None if mask is None else _flex_mask(mask, q.shape[0], q.shape[1], k.shape[1])
    out, lse = _compiled_flex()(
        *_heads_first(q, k, v), block_mask=block_mask, scale=scale, return_lse=True
    )
    return out.transpose(1, 2), lse


def _flex_mask(mask: BlockMask, batch: int, q_length: int, k_length: int) -> Any:
    """FlexAttention's mask from lists of blocks: no table of single scores is ever made."""
    from torch.nn.attention.flex_attention import BlockMask as FlexMask

    rows, columns = -(-q_length // Q_BLOCK), -(-k_length // K_BLOCK)
    lengths = mask.key_lengths_B
    device = next(x.device for x in (mask.blocks, lengths) if x is not None)
    blocks = mask.blocks
    if blocks is None:
        blocks = torch.ones(1, 1, rows, columns, dtype=torch.bool, device=device)
    ends = torch.arange(1, columns + 1, device=device) * K_BLOCK
    inside = (
        torch.ones(1, 1, 1, columns, dtype=torch.bool, device=device)
        if lengths is None
        else (ends <= lengths[:, None])[:, None, None]
    )
    touched = inside if lengths is None else (ends - K_BLOCK < lengths[:, None])[:, None, None]
    whole, cut = blocks & inside, blocks & touched & ~inside

    def listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
        counts = chosen.sum(-1).to(torch.int32)
        order = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        return counts, order.to(torch.int32).contiguous()

    def exists(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key >= 0 if lengths is None else key < lengths[b]

    return FlexMask.from_kv_blocks(
        *listed(cut),
        *listed(whole),
        BLOCK_SIZE=(Q_BLOCK, K_BLOCK),
        mask_mod=exists,
        seq_lengths=(q_length, k_length),
    )


@cache
def _flex_missing() -> str:
    try:
        import triton  # noqa: F401
        from torch.nn.attention import flex_attention  # noqa: F401
    except ImportError as error:
        return f"is not available: {error}"
    return ""


# ---- the definition ----


def _math(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None, scale: float
) -> tuple[Tensor, Tensor]:
    """With the scores in fp32 or better: what every other backend is checked by."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q_wide, k_wide, v_wide = _heads_first(q.to(wide), k.to(wide), v.to(wide))
    scores = (q_wide @ k_wide.transpose(-1, -2)) * scale
    if mask is not None:
        allowed = mask.dense(q.shape[1], k.shape[1]).to(q.device)
        scores = scores.masked_fill(~allowed, -torch.inf)
    sums = torch.logsumexp(scores, dim=-1)
    # A row without a key has LSE -inf; exp(-inf - -inf) would be nan where zero is meant.
    probs = torch.exp(scores - torch.where(torch.isneginf(sums), 0.0, sums)[..., None])
    return (probs @ v_wide).to(q.dtype).transpose(1, 2), sums


def _math_block_backward(grad_out: Tensor, saved: Saved, scale: float) -> Grads:
    wide = torch.promote_types(saved.q.dtype, torch.float32)
    grad_out, q, k, v, out = _heads_first(*(x.to(wide) for x in (grad_out, *saved[:4])))
    probs = torch.exp((q @ k.mT) * scale - saved.lse[..., None])
    level = (grad_out * out).sum(-1, keepdim=True)
    grad_scores = probs * (grad_out @ v.mT - level) * scale
    grads = (grad_scores @ k, grad_scores.mT @ q, probs.mT @ grad_out)
    return _tokens_first(*(x.to(saved.q.dtype) for x in grads))


BOTH_MASKS = frozenset({"block", "length"})

CUDNN = Backend(
    "cudnn",
    CUDA,
    HALF,
    forward=_cudnn,
    backward=_cudnn_backward,
    block_backward=_cudnn_block_backward,
    missing=_cudnn_missing,
    head_dim_multiple=8,
    head_dim_max=128,
)
SDPA_FLASH = Backend(
    "sdpa_flash",
    CUDA,
    HALF,
    forward=_flash,
    backward=_flash_backward,
    block_backward=_flash_block_backward,
    head_dim_multiple=8,
    head_dim_max=256,
)
SDPA_EFFICIENT = Backend(
    "sdpa_efficient",
    CUDA,
    FLOAT,
    forward=_efficient,
    backward=_efficient_backward,
    block_backward=_efficient_block_backward,
    head_dim_multiple=8,
    head_dim_max=1024,
)
SDPA_FLASH_CPU = Backend(
    "sdpa_flash_cpu",
    CPU,
    DOUBLE,
    forward=_flash_cpu,
    backward=_flash_cpu_backward,
    block_backward=_flash_cpu_backward,
)
FLEX = Backend(
    "flex",
    CUDA,
    FLOAT,
    run=_flex,
    missing=_flex_missing,
    head_dim_multiple=16,
    head_dim_max=256,
    masks=BOTH_MASKS,
    last_resort=True,
)
MATH = Backend(
    "math",
    frozenset({"cpu", "cuda", "meta"}),
    DOUBLE,
    run=_math,
    block_backward=_math_block_backward,
    masks=BOTH_MASKS,
    last_resort=True,
)
