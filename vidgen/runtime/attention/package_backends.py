"""Attention of other packages: FlashAttention 2, 3 and 4, and SageAttention."""

import importlib
import importlib.util
from functools import cache

import torch
from torch import Tensor

from vidgen.runtime.attention.backends import HALF, Backend, Forwarded, Grads, Saved, rows
from vidgen.runtime.attention.mask import BlockMask

CUDA = frozenset({"cuda"})


@cache
def _why_missing(module: str, package: str, capability: tuple[int, int], top: int) -> str:
    """What is missing for a package's kernels; they run from one capability up to a major one."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ImportError:  # a parent package that does not import
        found = False
    if not found:
        return f"is not installed; type: pip install {package}"
    if not torch.cuda.is_available():
        return "needs a GPU, and torch sees none"
    own = torch.cuda.get_device_capability()
    if own < capability or own[0] > top:
        return (
            f"runs on compute capability {capability[0]}.{capability[1]} to {top}.x, "
            f"this GPU has {own[0]}.{own[1]}"
        )
    return ""


def _like(saved: Saved) -> Grads:
    """Room for the gradients of q, k and v."""
    q, k, v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in saved[:3])
    return q, k, v


# ---- FlashAttention 4: CuTe DSL, compiled at the first call ----


def _flash4_missing() -> str:
    return _why_missing("flash_attn.cute", "flash-attn-4", (9, 0), 12)


def _flash4(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None, scale: float
) -> tuple[Tensor, Tensor]:
    from flash_attn.cute import flash_attn_func

    # Its own gradient reaches through the LSE.
    out, lse = flash_attn_func(q, k, v, softmax_scale=scale, return_lse=True)
    return out, lse


def _flash4_block_backward(grad_out: Tensor, saved: Saved, scale: float) -> Grads:
    from flash_attn.cute.interface import _flash_attn_bwd

    q, k, v, out, lse, _ = saved
    dq, dk, dv, *_ = _flash_attn_bwd(q, k, v, out, grad_out, lse, softmax_scale=scale)
    return dq, dk, dv


# ---- FlashAttention 3: Hopper ----


def _flash3_missing() -> str:
    return _why_missing("flash_attn_interface", "flash_attn_3", (9, 0), 9)


def _flash3(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Forwarded:
    from flash_attn_interface import _flash_attn_forward

    out, lse, *_ = _flash_attn_forward(q, k, v, softmax_scale=scale)
    return out, lse, ()


def _flash3_backward(grad_out: Tensor, saved: Saved, scale: float) -> Grads:
    from flash_attn_interface import _flash_attn_backward

    dq, dk, dv = _like(saved)
    _flash_attn_backward(grad_out, *saved[:5], dq=dq, dk=dk, dv=dv, softmax_scale=scale)
    return dq, dk, dv


# ---- FlashAttention 2 ----


def _flash2_missing() -> str:
    return _why_missing("flash_attn.flash_attn_interface", "flash-attn", (8, 0), 12)


def _flash2(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Forwarded:
    from flash_attn import flash_attn_func

    # Outside of autograd; return_attn_probs is its name for the LSE.
    out, lse, _ = flash_attn_func(q, k, v, softmax_scale=scale, return_attn_probs=True)
    return out, lse, ()


def _flash2_backward(grad_out: Tensor, saved: Saved, scale: float) -> Grads:
    from flash_attn.flash_attn_interface import _flash_attn_backward

    grads = _like(saved)
    _flash_attn_backward(
        grad_out,
        *saved[:5],
        *grads,
        dropout_p=0.0,
        softmax_scale=scale,
        causal=False,
        window_size_left=-1,
        window_size_right=-1,
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
    )
    return grads


# ---- SageAttention: 8-bit products, sampling only ----


def _sage_missing() -> str:
    return _why_missing("sageattention", "sageattention", (8, 0), 12)


def _sage(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None, scale: float
) -> tuple[Tensor, Tensor]:
    from sageattention import sageattn

    q, k, v = (rows(x) for x in (q, k, v))
    out, lse = sageattn(q, k, v, tensor_layout="NHD", sm_scale=scale, return_lse=True)
    return out, lse


FLASH4 = Backend(
    "flash4",
    CUDA,
    HALF,
    run=_flash4,
    block_backward=_flash4_block_backward,
    missing=_flash4_missing,
    head_dim_multiple=8,
    head_dim_max=128,
)
FLASH3 = Backend(
    "flash3",
    CUDA,
    HALF,
    forward=_flash3,
    backward=_flash3_backward,
    block_backward=_flash3_backward,
    missing=_flash3_missing,
    head_dim_multiple=8,
    head_dim_max=256,
)
FLASH2 = Backend(
    "flash2",
    CUDA,
    HALF,
    forward=_flash2,
    backward=_flash2_backward,
    block_backward=_flash2_backward,
    missing=_flash2_missing,
    head_dim_multiple=8,
    head_dim_max=256,
)
SAGE = Backend(
    "sage",
    CUDA,
    HALF,
    run=_sage,
    missing=_sage_missing,
    head_dim_multiple=64,
    head_dim_max=128,
    gradient=False,
    exact=False,
)
