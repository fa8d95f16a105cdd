"""Every backend that loads on a GPU through the cases of the CPU's, and long ones."""

import pytest
import torch
from torch import Tensor

from vidgen.runtime.attention import attention
from vidgen.runtime.attention.backends import Backend, Needs
from vidgen.runtime.attention.soundness import by_definition, fault
from vidgen.runtime.attention.table import TABLE

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
BACKENDS = [b for b in TABLE if DEVICE in b.devices and b.exact]


def able(backend: Backend, dtype: torch.dtype, dim: int, **more: object) -> Needs:
    said = {"gradient": True, "lse": True, "mask": frozenset(), **more}
    needs = Needs(DEVICE, dtype, dim, **said)  # type: ignore[arg-type]
    if reason := backend.refusal(needs):
        pytest.skip(reason)
    return needs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_small_odd_cases(backend: Backend, dtype: torch.dtype) -> None:
    """Head dims, masks, LSE and its gradient: whatever the backend says it takes."""
    able(backend, dtype, 64, lse=False)
    masks = [(), ("block",), ("length",), ("block", "length")]
    faults = {}
    for dim in (32, 64, 128, 256):
        for lse in (False, True):
            for mask in masks:
                needs = Needs(DEVICE, dtype, dim, True, lse, frozenset(mask))
                if backend.refusal(needs) is None and (why := fault(backend, needs)):
                    faults[dim, lse, mask] = why
        for gradient in (False, True):
            needs = Needs(DEVICE, dtype, dim, gradient, True, frozenset(), blocks=True)
            if backend.refusal(needs) is None and (why := fault(backend, needs)):
                faults[dim, gradient, "blocks"] = why
    assert not faults


@pytest.mark.parametrize(
    ("q_length", "k_length"), [(1, 1), (7, 7), (129, 129), (1, 8963), (300, 8963), (8963, 77)]
)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_odd_lengths_by_the_error_rule(
    backend: Backend, q_length: int, k_length: int, dim: int
) -> None:
    able(backend, torch.bfloat16, dim, lse=False)
    q, k, v, grad = (
        torch.randn(2, n, 2, dim, device=DEVICE).bfloat16()
        for n in (q_length, k_length, k_length, q_length)
    )
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attention(*leaves, backend=backend.name)
    found = [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    def defined(*tensors: Tensor) -> list[Tensor]:
        q, k, v, grad = tensors
        out, _, *grads = by_definition(q, k, v, None, dim**-0.5, grad, None)
        return [out, *grads]

    eager = defined(q, k, v, grad)
    exact = defined(*(x.double() for x in (q, k, v, grad)))
    for a, b, c in zip(found, eager, exact, strict=True):
        off, allowed = (float((x.double() - c).abs().max()) for x in (a, b))
        assert off <= 2 * allowed + 2**-8 * float(c.abs().max()) + 1e-5


def test_strided_heads_of_a_fused_projection() -> None:
    q, k, v = torch.randn(2, 70, 3, 4, 64, device=DEVICE, dtype=torch.bfloat16).unbind(2)
    expected = attention(q, k, v, backend="math")
    for backend in BACKENDS:
        if backend.refusal(Needs(DEVICE, q.dtype, 64, False, False, frozenset())) is None:
            found = attention(q, k, v, backend=backend.name)
            torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


def test_auto_runs_and_is_remembered() -> None:
    q = torch.randn(1, 300, 2, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    out = attention(q, q, q)
    out.sum().backward()
    torch.testing.assert_close(out, attention(q, q, q, backend="math"), atol=2e-2, rtol=2e-2)
