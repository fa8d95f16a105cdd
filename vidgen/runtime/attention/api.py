"""Attention: one function over the table of backends."""

from typing import Literal, overload

import torch
from torch import Tensor

from vidgen.runtime.attention.backends import Needs, rows
from vidgen.runtime.attention.choice import choose
from vidgen.runtime.attention.mask import BlockMask
from vidgen.runtime.attention.soundness import known_fault
from vidgen.runtime.attention.table import TABLE


@overload
def attention(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    *,
    mask: BlockMask | None = None,
    return_lse: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...
@overload
def attention(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    *,
    mask: BlockMask | None = None,
    return_lse: Literal[True],
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...
def attention(
    q_BLHD: Tensor,
    k_BLHD: Tensor,
    v_BLHD: Tensor,
    *,
    mask: BlockMask | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention over all keys, scale 1/sqrt(D).

    With `return_lse` it also returns the log of the softmax denominators (LSE), fp32 (B, H, Lq),
    which `merge` and ring attention need. Without keys the output is zero and the LSE is -inf.
    """
    _check(q_BLHD, k_BLHD, v_BLHD, mask)
    gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q_BLHD, k_BLHD, v_BLHD))
    needs = Needs(
        q_BLHD.device.type,
        q_BLHD.dtype,
        q_BLHD.shape[-1],
        gradient,
        return_lse,
        mask.kinds if mask is not None else frozenset(),
    )
    B, L, H, D = q_BLHD.shape
    keys = k_BLHD.shape[1]
    chosen = choose(needs, backend, (B, L, keys, H))
    if not B * L * keys * H:
        return _nothing(q_BLHD, k_BLHD, v_BLHD, return_lse)
    q, k, v = (rows(x) for x in (q_BLHD, k_BLHD, v_BLHD))
    out_BLHD, lse_BHL = chosen(q, k, v, mask, D**-0.5)
    if not return_lse:
        return out_BLHD
    return out_BLHD, lse_BHL.to(torch.promote_types(q.dtype, torch.float32))


def _nothing(q: Tensor, k: Tensor, v: Tensor, return_lse: bool) -> Tensor | tuple[Tensor, Tensor]:
    """The result without keys or queries: zeros, even if q is not finite, with zero gradients."""
    everywhere = torch.ones((), dtype=torch.bool, device=q.device)
    out = (q + (k.sum() + v.sum())).masked_fill(everywhere, 0.0)
    if not return_lse:
        return out
    wide = torch.promote_types(q.dtype, torch.float32)
    lse = q.sum(dim=-1, dtype=wide).transpose(1, 2).masked_fill(everywhere, -torch.inf)
    return out, lse


def backends(needs: Needs | None = None) -> list[dict[str, object]]:
    """For `vidgen doctor`: each backend, whether it can run the model here, and why not."""
    if needs is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        needs = Needs(device, torch.bfloat16, 128, True, False, frozenset())
    chosen = choose(needs, shape=(1, 8960, 8960, 24))
    table = []
    for name in dict.fromkeys(b.name for b in TABLE):
        versions = [b for b in TABLE if b.name == name]
        here = next((b for b in versions if needs.device in b.devices), versions[0])
        reason = here.refusal(needs) or ""
        if not reason and here.exact and here is not chosen:
            reason = known_fault(here, needs)
        table.append(
            {
                "name": name,
                "available": not reason,
                "reason": reason,
                "chosen": here is chosen,
            }
        )
    return table


def _check(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None) -> None:
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape:
        raise ValueError(
            f"attention takes q (B, Lq, H, D) and k, v (B, Lk, H, D); "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(
            f"q {tuple(q.shape)} and k {tuple(k.shape)} differ in batch, heads or head dim"
        )
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        raise ValueError(
            f"q, k, v differ in dtype or device: {q.dtype}, {k.dtype}, {v.dtype} on "
            f"{q.device}, {k.device}, {v.device}"
        )
    if mask is not None:
        mask.check(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
