"""Joining attention over two sets of keys into attention over their union."""

from typing import Any

import torch
from torch import Tensor

from vidgen.runtime.ops import dispatch, kernels
from vidgen.runtime.ops.kernels import rows
from vidgen.runtime.ops.registry import define


def merge(
    out_a_BLHD: Tensor, lse_a_BHL: Tensor, out_b_BLHD: Tensor, lse_b_BHL: Tensor
) -> tuple[Tensor, Tensor]:
    """Both results in fp32 (fp64 stays); an LSE of -inf stands for an empty set of keys."""
    if _plain(out_a_BLHD, lse_a_BHL, out_b_BLHD, lse_b_BHL):
        return reference(out_a_BLHD, lse_a_BHL, out_b_BLHD, lse_b_BHL)
    out, lse = torch.ops.vidgen.merge(
        out_a_BLHD.float(), lse_a_BHL.float(), out_b_BLHD, lse_b_BHL.float()
    )
    return out, lse


def merge_(out_a_BLHD: Tensor, lse_a_BHL: Tensor, out_b_BLHD: Tensor, lse_b_BHL: Tensor) -> None:
    """merge() into out_a and lse_a themselves, which are fp32 (or fp64); without gradients."""
    wide = (torch.float32, torch.float64)
    if out_a_BLHD.dtype not in wide or lse_a_BHL.dtype not in wide:
        raise ValueError(f"merge_ adds up in fp32: found {out_a_BLHD.dtype} and {lse_a_BHL.dtype}")
    if _plain(out_a_BLHD, lse_a_BHL, out_b_BLHD, lse_b_BHL):
        with torch.no_grad():
            out, lse = reference(out_a_BLHD, lse_a_BHL, out_b_BLHD, lse_b_BHL)
            out_a_BLHD.copy_(out)
            lse_a_BHL.copy_(lse)
        return
    torch.ops.vidgen.merge_(out_a_BLHD, lse_a_BHL, out_b_BLHD, lse_b_BHL.float())


def _plain(*tensors: Tensor) -> bool:
    if any(x.dtype == torch.float64 for x in tensors):
        return True
    return dispatch.choose("merge", tensors[2]) == "reference"


def reference(
    out_a_BLHD: Tensor, lse_a_BHL: Tensor, out_b_BLHD: Tensor, lse_b_BHL: Tensor
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(lse_a_BHL.dtype, torch.float32)
    lse_a, lse_b = lse_a_BHL.to(dtype), lse_b_BHL.to(dtype)
    # Where both sets are empty the difference is nan: neither side weighs anything there.
    nothing = torch.isneginf(lse_a) & torch.isneginf(lse_b)
    gap = torch.where(nothing, 0.0, lse_b) - torch.where(nothing, 0.0, lse_a)
    weight_b = torch.sigmoid(gap).transpose(1, 2).unsqueeze(-1)
    out_a = out_a_BLHD.to(dtype)
    out = out_a + weight_b * (out_b_BLHD.to(dtype) - out_a)
    joint = torch.logaddexp(torch.where(nothing, 0.0, lse_a), torch.where(nothing, 0.0, lse_b))
    return out, torch.where(nothing, -torch.inf, joint)


def _check(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> None:
    B, L, H, _ = out_a.shape
    if out_b.shape != out_a.shape or not lse_a.shape == lse_b.shape == (B, H, L):
        found = ", ".join(str(tuple(x.shape)) for x in (out_a, lse_a, out_b, lse_b))
        raise ValueError(f"merge takes (B, L, H, D), (B, H, L) twice; got {found}")


def _forward(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    _check(out_a, lse_a, out_b, lse_b)
    results = _empty(out_a, lse_a, out_b, lse_b)
    given = (rows(out_a), lse_a.contiguous(), rows(out_b), lse_b.contiguous())
    kernels.run("merge", "forward", *given, *results)
    return results


def _empty(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    return out_a.new_empty(out_a.shape), lse_a.new_empty(lse_a.shape)


def _in_place(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> None:
    _check(out_a, lse_a, out_b, lse_b)
    out, lse = rows(out_a), lse_a.contiguous()
    kernels.run("merge", "forward", out, lse, rows(out_b), lse_b.contiguous(), out, lse)
    if out is not out_a:
        out_a.copy_(out)
    if lse is not lse_a:
        lse_a.copy_(lse)


def _backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    out_a: Tensor,
    lse_a: Tensor,
    out_b: Tensor,
    lse_b: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = _empty_grads(grad_out, grad_lse, out_a, lse_a, out_b, lse_b)
    kernels.run(
        "merge",
        "backward",
        *(rows(grad_out), grad_lse.contiguous(), rows(out_a), lse_a.contiguous()),
        *(rows(out_b), lse_b.contiguous()),
        *grads,
    )
    return grads


def _empty_grads(
    grad_out: Tensor,
    grad_lse: Tensor,
    out_a: Tensor,
    lse_a: Tensor,
    out_b: Tensor,
    lse_b: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b, c, d = (x.new_empty(x.shape) for x in (out_a, lse_a, out_b, lse_b))
    return a, b, c, d


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor, ...]:
    grads: tuple[Tensor, ...] = torch.ops.vidgen.merge_backward(
        grad_out, grad_lse, *ctx.saved_tensors
    )
    return grads


define(
    "merge(Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b) -> (Tensor out, Tensor lse)",
    _forward,
    _empty,
    _gradient,
    _setup_context,
)
define(
    "merge_(Tensor(a!) out_a, Tensor(b!) lse_a, Tensor out_b, Tensor lse_b) -> ()",
    _in_place,
    lambda *tensors: None,
)
define(
    "merge_backward(Tensor grad_out, Tensor grad_lse, Tensor out_a, Tensor lse_a, Tensor out_b,"
    " Tensor lse_b)"
    " -> (Tensor grad_out_a, Tensor grad_lse_a, Tensor grad_out_b, Tensor grad_lse_b)",
    _backward,
    _empty_grads,
)
