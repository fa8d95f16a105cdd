"""Attention: one function over the table of backends."""

from typing import Literal, overload

import torch
from torch import Tensor

from vidgen.errors import UserError
from vidgen.runtime.attention.backends import TABLE, Backend, Needs
from vidgen.runtime.attention.mask import BlockMask


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

    With `return_lse` also the log of the softmax denominators, fp32 (B, H, Lq), which `merge`
    and ring attention need. Without keys the output is zero and the LSE is -inf.
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
    chosen = choose(needs, backend)
    if k_BLHD.shape[1] == 0 or q_BLHD.shape[1] == 0:
        return _nothing(q_BLHD, k_BLHD, v_BLHD, return_lse)
    # Kernels read a head's numbers as one run of memory, whatever the stride says.
    q, k, v = (
        (x if x.stride(-1) == 1 else x.contiguous()).transpose(1, 2)
        for x in (q_BLHD, k_BLHD, v_BLHD)
    )
    out, sums = chosen.run(q, k, v, mask, return_lse)
    out_BLHD = out.transpose(1, 2)
    if not return_lse:
        return out_BLHD
    assert sums is not None
    return out_BLHD, sums.to(torch.promote_types(q.dtype, torch.float32))


def _nothing(q: Tensor, k: Tensor, v: Tensor, return_lse: bool) -> Tensor | tuple[Tensor, Tensor]:
    """No keys, or no queries: zeros even where q is not finite, and gradients that are zeros."""
    everywhere = torch.ones((), dtype=torch.bool, device=q.device)
    out = (q + (k.sum() + v.sum())).masked_fill(everywhere, 0.0)
    if not return_lse:
        return out
    wide = torch.promote_types(q.dtype, torch.float32)
    lse = q.sum(dim=-1, dtype=wide).transpose(1, 2).masked_fill(everywhere, -torch.inf)
    return out, lse


def choose(needs: Needs, backend: str = "auto") -> Backend:
    """The backend that serves `needs`; one that is named must be able to, or it raises why not."""
    if backend != "auto":
        named = [b for b in TABLE if b.name == backend]
        if not named:
            names = ", ".join(b.name for b in TABLE)
            raise UserError(
                f"attention backend {backend!r} does not exist; there are: auto, {names}"
            )
        if reason := named[0].refusal(needs):
            raise UserError(f"attention backend {backend!r} cannot serve this call: it {reason}")
        return named[0]
    for candidate in TABLE:
        if candidate.refusal(needs) is None:
            return candidate
    reasons = "; ".join(f"{b.name} {b.refusal(needs)}" for b in TABLE)
    raise UserError(f"no attention backend can serve this call: {reasons}")


def backends(needs: Needs | None = None) -> list[dict[str, object]]:
    """For `vidgen doctor`: each backend, whether it would run the model here, and why not."""
    if needs is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        needs = Needs(device, dtype, 128, True, False, frozenset())
    chosen = choose(needs).name
    return [
        {
            "name": b.name,
            "available": b.refusal(needs) is None,
            "reason": b.refusal(needs) or "",
            "chosen": b.name == chosen,
        }
        for b in TABLE
    ]


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
