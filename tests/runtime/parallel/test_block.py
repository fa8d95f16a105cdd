"""Block by block with the whole row's sums: gradients add up to those over all keys."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vidgen.runtime.attention import merge
from vidgen.runtime.parallel import block
from vidgen.runtime.parallel.block import BlockKernel, block_kernel

MATH = BlockKernel("math", torch.float64, block._math, block._math_backward)
SHAPES = [(2, 5, 3, 8, [7, 1]), (1, 130, 2, 16, [64, 3, 70])]  # B, queries, heads, D, blocks


def by_definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("blhd,bmhd->bhlm", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), v)


def both_ways(attend: object, q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attend(*leaves)  # type: ignore[operator]
    return [out, *torch.autograd.grad(out, leaves, dout)]


def in_blocks(
    kernel: BlockKernel, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, sizes: list[int]
) -> list[Tensor]:
    q, dout = q.to(kernel.dtype), dout.to(kernel.dtype)
    ks, vs = (x.to(kernel.dtype).split(sizes, dim=1) for x in (k, v))
    out, lse = (
        x.to(torch.promote_types(x.dtype, torch.float32)) for x in kernel.forward(q, ks[0], vs[0])
    )
    for a, b in zip(ks[1:], vs[1:], strict=True):
        out, lse = merge(out, lse, *kernel.forward(q, a, b))
    out = out.to(kernel.dtype)
    parts = [kernel.backward(dout, q, a, b, out, lse) for a, b in zip(ks, vs, strict=True)]
    dqs, dks, dvs = zip(*parts, strict=True)
    dq = torch.stack([x.float() if x.dtype.itemsize < 4 else x for x in dqs]).sum(0)
    return [out, dq, torch.cat(dks, dim=1), torch.cat(dvs, dim=1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_blocks_add_up_on_a_cpu(dtype: torch.dtype, shape: tuple[Any, ...]) -> None:
    check(dtype, shape, "cpu", "flash_cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_add_up_on_a_gpu(shape: tuple[Any, ...]) -> None:
    check(torch.bfloat16, shape, "cuda", "flash")


def check(dtype: torch.dtype, shape: tuple[Any, ...], device: str, name: str) -> None:
    B, L, H, D, sizes = shape
    given = [
        torch.randn(B, n, H, D, device=device).to(dtype) for n in (L, sum(sizes), sum(sizes), L)
    ]
    exact = both_ways(by_definition, *(x.double() for x in given))
    eager = both_ways(by_definition, *given)
    kernel = block_kernel(given[0])
    assert kernel.name == name
    for ours, plain, wanted in zip(in_blocks(kernel, *given, sizes), eager, exact, strict=True):
        error, allowed = ((x.double() - wanted).abs().max() for x in (ours, plain))
        assert error <= 2 * allowed + 1e-6 * wanted.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_plain_kernel_is_the_definition(shape: tuple[Any, ...]) -> None:
    B, L, H, D, sizes = shape
    given = [torch.randn(B, n, H, D).double() for n in (L, sum(sizes), sum(sizes), L)]
    exact = both_ways(by_definition, *given)
    for ours, wanted in zip(in_blocks(MATH, *given, sizes), exact, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
