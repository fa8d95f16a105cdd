import pytest
import torch
import torch.nn.functional as F

from vidgen.runtime import ops

SHAPES = [(1, 1, 3), (2, 9, 101), (2, 37, 101), (1, 133, 256), (3, 5, 1000)]


def eager(x, y, gate, shift, scale, eps=1e-6):
    residual = x + gate[:, None] * y
    normal = F.layer_norm(residual, residual.shape[-1:], eps=eps)
    return residual, (1 + scale[:, None]) * normal + shift[:, None]


def inputs(shape, dtype):
    batch, _, width = shape
    tokens = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(2)]
    vectors = [torch.randn(batch, width).to(dtype).requires_grad_() for _ in range(3)]
    return [*tokens, *vectors]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_rule(laws, shape, dtype):
    laws.error_rule(ops.gated_residual_modulate, eager, inputs(shape, dtype))


def test_equals_the_two_ops(kernel_laws, dtype):
    x, y, gate, shift, scale = inputs((2, 37, 101), dtype)
    residual = ops.gated_residual(x, y, gate)
    fused = ops.gated_residual_modulate(x, y, gate, shift, scale)
    assert torch.equal(fused[0], residual)
    assert torch.equal(fused[1], ops.modulate(residual, shift, scale))


def test_only_one_output_used(laws):
    """The gradient of an output nobody used is zero, not garbage."""
    tensors = inputs((2, 7, 24), torch.float32)
    for i in range(2):
        found = torch.autograd.grad(ops.gated_residual_modulate(*tensors)[i].sum(), tensors[:3])
        expected = torch.autograd.grad(eager(*tensors)[i].sum(), tensors[:3])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_non_finite(laws, dtype):
    x, y, *vectors = inputs((2, 6, 50), dtype)
    with torch.no_grad():
        x[0, 1, 3] = float("nan")
        y[1, 2, 49] = float("inf")
    laws.passes_on_non_finite_values(ops.gated_residual_modulate, [x, y, *vectors])


def test_no_tokens(laws):
    tensors = inputs((2, 0, 8), torch.float32)
    sum(t.sum() for t in ops.gated_residual_modulate(*tensors)).backward()
    assert torch.equal(tensors[2].grad, torch.zeros(2, 8))


def test_threads(kernel_laws, dtype):
    kernel_laws.same_bits_for_any_thread_count(
        ops.gated_residual_modulate, inputs((2, 700, 130), dtype)
    )


def test_compile(laws, dtype):
    laws.compiles_without_a_break(ops.gated_residual_modulate, inputs((2, 7, 24), dtype))


def test_checkpoint(laws):
    laws.recomputes_the_same_bits(ops.gated_residual_modulate, inputs((2, 7, 24), torch.bfloat16))


def test_opcheck(kernel_laws):
    tensors = inputs((2, 5, 9), torch.float32)
    torch.library.opcheck(torch.ops.vidgen.gated_residual_modulate.default, (*tensors, 0.1))


def test_float64_gradients():
    shapes = [(2, 3, 5)] * 2 + [(2, 5)] * 3
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(ops.gated_residual_modulate, tensors)
