"""Attention of some queries over one block of keys, and its gradient given the whole row's sums.

What ring attention needs of a kernel. Forward: out and LSE over this block. Backward: with `out`
and `lse` over all keys, exp(score - lse) is the block's part of the softmax as it was, so the
gradients of all blocks add up to those of the whole. Shapes: L queries, M keys of the block.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# (q, k, v) -> out (B, L, H, D), lse (B, H, L)
Forward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
# (dout, q, k, v, out, lse) -> dq, dk, dv
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class BlockKernel:
    """`dtype` is what q, k, v, out and dout are given in: wider than they are stored, perhaps."""

    name: str
    dtype: torch.dtype
    forward: Forward
    backward: Backward


def block_kernel(q_BLHD: Tensor) -> BlockKernel:
    """The kernel for tensors like these.

    On a CPU half precision is widened to fp32 first: nothing is rounded before the last hop. The
    GPU's flash kernel rounds each block's output to half precision; the merge weighs those
    outputs with numbers that sum to one, so the error stays that of one rounding.
    """
    half = q_BLHD.dtype in (torch.bfloat16, torch.float16)
    D = q_BLHD.shape[-1]
    if q_BLHD.device.type == "cuda" and half and D % 8 == 0 and D <= 256:
        return BlockKernel("flash", q_BLHD.dtype, _flash_cuda, _flash_cuda_backward)
    wide = torch.promote_types(q_BLHD.dtype, torch.float32)
    if q_BLHD.device.type == "cpu":
        return BlockKernel("flash_cpu", wide, _flash_cpu, _flash_cpu_backward)
    return BlockKernel("math", wide, _math, _math_backward)


def _heads_first(*tensors_BLHD: Tensor) -> list[Tensor]:
    """As kernels want it; a head's numbers lie side by side."""
    return [(x if x.stride(-1) == 1 else x.contiguous()).transpose(1, 2) for x in tensors_BLHD]


def _tokens_first(*tensors_BHLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b, c = (x.transpose(1, 2) for x in tensors_BHLD)
    return a, b, c


def _flash_cpu(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*_heads_first(q, k, v))
    return out.transpose(1, 2), lse


def _flash_cpu_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _tokens_first(
        *torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *_heads_first(dout, q, k, v, out), lse, 0.0, False
        )
    )


def _flash_cuda(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(*_heads_first(q, k, v))
    return out.transpose(1, 2), lse[..., : q.shape[1]]


def _flash_cuda_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    seed = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of a dropout there is none of
    return _tokens_first(
        *torch.ops.aten._scaled_dot_product_flash_attention_backward(
            *_heads_first(dout, q, k, v, out),
            lse,
            None,
            None,
            q.shape[1],
            k.shape[1],
            0.0,
            False,
            seed,
            seed,
        )
    )


_ROWS = 1024  # queries whose scores are held at a time


def _math(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    k_BHMD, v_BHMD = _heads_first(k, v)
    outs, sums = [], []
    for rows in q.split(_ROWS, dim=1):
        scores_BHRM = (rows.transpose(1, 2) @ k_BHMD.mT) * q.shape[-1] ** -0.5
        lse_BHR = torch.logsumexp(scores_BHRM, dim=-1)
        outs.append((torch.exp(scores_BHRM - lse_BHR[..., None]) @ v_BHMD).transpose(1, 2))
        sums.append(lse_BHR)
    return torch.cat(outs, dim=1), torch.cat(sums, dim=2)


def _math_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    k_BHMD, v_BHMD = _heads_first(k, v)
    dq_BLHD = torch.empty_like(q)
    dk_BHMD, dv_BHMD = torch.zeros_like(k_BHMD), torch.zeros_like(v_BHMD)
    delta_BHL = (dout * out).sum(-1).transpose(1, 2)
    scale = q.shape[-1] ** -0.5
    for at in range(0, q.shape[1], _ROWS):
        rows = slice(at, at + _ROWS)
        q_BHRD, dout_BHRD = _heads_first(q[:, rows], dout[:, rows])
        probs_BHRM = torch.exp((q_BHRD @ k_BHMD.mT) * scale - lse[:, :, rows, None])
        dv_BHMD += probs_BHRM.mT @ dout_BHRD
        dprobs_BHRM = dout_BHRD @ v_BHMD.mT
        dscores_BHRM = probs_BHRM * (dprobs_BHRM - delta_BHL[:, :, rows, None]) * scale
        dq_BLHD[:, rows] = (dscores_BHRM @ k_BHMD).transpose(1, 2)
        dk_BHMD += dscores_BHRM.mT @ q_BHRD
    return dq_BLHD, dk_BHMD.transpose(1, 2), dv_BHMD.transpose(1, 2)
