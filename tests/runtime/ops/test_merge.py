"""Attention over parts of the keys, joined, is attention over all of them."""

import os
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from vidgen.runtime import native, ops
from vidgen.runtime.attention import attention, merge, merge_

AVAILABLE = ["reference"]
if native.load() is not None:
    AVAILABLE.append("compiled")
if os.environ.get("TRITON_INTERPRET") == "1":
    AVAILABLE.append("triton")


@pytest.fixture(params=AVAILABLE, autouse=True)
def _implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    with ops.use(request.param):
        yield


@pytest.mark.parametrize("cuts", [(5,), (0,), (11,), (1, 2, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_parts_join_into_the_whole_with_gradients(
    cuts: tuple[int, ...], dtype: torch.dtype
) -> None:
    q, k, v = (torch.randn(2, n, 3, 16).to(dtype).requires_grad_() for n in (7, 11, 11))

    def joined() -> tuple[Tensor, Tensor]:
        edges = [0, *cuts, 11]
        parts = [attention(q, k[:, a:b], v[:, a:b], return_lse=True) for a, b in pairwise(edges)]
        out, lse = parts[0]
        for part in parts[1:]:
            out, lse = merge(out, lse, *part)
        return out, lse

    weight, lse_weight = torch.randn(2, 7, 3, 16), torch.randn(2, 3, 7)
    results = []
    for out, lse in (joined(), attention(q, k, v, return_lse=True)):
        loss = (out * weight).sum() + (lse * lse_weight).sum()
        results.append([out.to(lse.dtype), lse, *torch.autograd.grad(loss, (q, k, v))])
    close = {"atol": 5e-2, "rtol": 5e-2} if dtype == torch.bfloat16 else {}
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **close)


def both(lse_a: float, lse_b: float, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """out_a = 1, out_b = 3; merged out, LSE, and the gradients of their sum."""
    leaves = [
        torch.ones(1, 1, 1, 2, dtype=dtype),
        torch.full((1, 1, 1), lse_a, dtype=dtype),
        torch.full((1, 1, 1, 2), 3.0, dtype=dtype),
        torch.full((1, 1, 1), lse_b, dtype=dtype),
    ]
    out, lse = merge(*(leaf.requires_grad_() for leaf in leaves))
    finite = torch.where(lse.isneginf(), 0.0, lse)
    return [out.detach(), lse.detach(), *torch.autograd.grad(out.sum() + finite.sum(), leaves)]


@pytest.mark.parametrize("far", [1e4, torch.inf])
def test_a_part_far_below_the_other_weighs_nothing(far: float) -> None:
    for big in (1e4, 0.0, -1e4):
        out, lse, *grads = both(big - far if far == 1e4 else -torch.inf, big)
        assert (float(lse), out.tolist()) == (big, [[[[3.0, 3.0]]]])
        assert [float(g.sum()) for g in grads] == [0.0, 0.0, 2.0, 1.0]
        out, lse, *grads = both(big, big - far if far == 1e4 else -torch.inf)
        assert (float(lse), out.tolist()) == (big, [[[[1.0, 1.0]]]])
        assert [float(g.sum()) for g in grads] == [2.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("level", [-1e4, 0.0, 1e4])
def test_equal_parts_at_any_level(level: float) -> None:
    out, lse, *grads = both(level, level)
    assert torch.equal(out, torch.full((1, 1, 1, 2), 2.0))
    assert float(lse) == pytest.approx(level + 0.6931472, rel=1e-6)
    # d out / d LSE = w (1 - w) (out_b - out_a) for each of two columns; d LSE / d LSE = w
    assert [float(g.sum()) for g in grads] == [1.0, -0.5, 1.0, 1.5]


def test_two_empty_parts_are_empty() -> None:
    zeros, nothing = torch.zeros(1, 2, 1, 4), torch.full((1, 1, 2), -torch.inf)
    leaves = [zeros.clone(), nothing.clone(), zeros.clone(), nothing.clone()]
    out, lse = merge(*(leaf.requires_grad_() for leaf in leaves))
    assert torch.equal(out, zeros)
    assert torch.equal(lse, nothing)
    for grad in torch.autograd.grad(out.sum(), leaves):
        assert grad.isfinite().all()


def test_half_precision_parts_join_in_fp32() -> None:
    out, lse = merge(
        torch.ones(1, 1, 1, 2, dtype=torch.bfloat16),
        torch.zeros(1, 1, 1),
        torch.ones(1, 1, 1, 2, dtype=torch.bfloat16) * 3,
        torch.zeros(1, 1, 1),
    )
    assert (out.dtype, lse.dtype) == (torch.float32, torch.float32)


def test_in_place_is_the_same_numbers() -> None:
    out_a, out_b = torch.randn(2, 5, 3, 20), torch.randn(2, 5, 3, 20)
    lse_a, lse_b = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    lse_a[0, 0, 0] = -torch.inf
    out, lse = merge(out_a, lse_a, out_b, lse_b)
    strided = torch.empty(2, 3, 5, 20).transpose(1, 2).copy_(out_a)
    merge_(strided, lse_a, out_b, lse_b)
    torch.testing.assert_close(strided, out)
    torch.testing.assert_close(lse_a, lse)
    with pytest.raises(ValueError, match="merge_ adds up in fp32"):
        merge_(out_a.bfloat16(), lse_a, out_b, lse_b)


def test_by_the_error_rule_with_gradients() -> None:
    shapes = [(2, 37, 3, 40), (2, 3, 37)] * 2
    wide = [3 * torch.randn(s, dtype=torch.float64) for s in shapes]
    grads = [torch.randn(s) for s in shapes[:2]]
    exact, found = (
        [
            *(results := merge(*(leaves := [x.to(t).requires_grad_() for x in wide]))),
            *torch.autograd.grad(results, leaves, [g.to(t) for g in grads]),
        ]
        for t in (torch.float64, torch.float32)
    )
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.double(), b, atol=3e-6, rtol=3e-6)


def test_nan_spreads() -> None:
    lse = torch.tensor([[[0.0, torch.nan, -torch.inf]]])
    other = torch.tensor([[[torch.nan, 0.0, torch.nan]]])
    out, joint = merge(torch.zeros(1, 3, 1, 4), lse, torch.ones(1, 3, 1, 4), other)
    assert joint.isnan().all()
    assert out.isnan().all()


def test_the_operators_are_well_registered(request: pytest.FixtureRequest) -> None:
    if "compiled" not in request.node.name:
        pytest.skip("has no operator of its own here")
    given = [torch.randn(2, 5, 3, 8), torch.randn(2, 3, 5)] * 2
    given = [x.clone().requires_grad_() for x in given]
    torch.library.opcheck(torch.ops.vidgen.merge.default, given)
    torch.library.opcheck(torch.ops.vidgen.merge_.default, [x.detach() for x in given])


def test_shapes_that_do_not_match(request: pytest.FixtureRequest) -> None:
    if "reference" in request.node.name:
        pytest.skip("torch itself refuses")
    out, lse = torch.zeros(1, 5, 2, 4), torch.zeros(1, 2, 5)
    with pytest.raises(ValueError, match="merge takes"):
        merge(out, lse, out[:, :3], lse)
