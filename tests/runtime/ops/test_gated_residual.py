import pytest
import torch

from vidgen.runtime import ops

SHAPES = [(1, 1, 1), (2, 9, 101), (2, 37, 101), (1, 133, 256), (3, 5, 1000)]


def eager(x, y, gate):
    return x + gate[:, None] * y


def inputs(shape, dtype):
    batch, _, width = shape
    x, y = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(2))
    return [x, y, torch.randn(batch, width).to(dtype).requires_grad_()]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_rule(laws, shape, dtype):
    laws.error_rule(ops.gated_residual, eager, inputs(shape, dtype))


def test_non_finite(laws, dtype):
    x, y, gate = inputs((2, 6, 50), dtype)
    with torch.no_grad():
        x[0, 1, 3] = float("nan")
        y[1, 2, 49] = float("inf")
    laws.passes_on_non_finite_values(ops.gated_residual, [x, y, gate])


def test_no_tokens(laws):
    x, y, gate = inputs((2, 0, 8), torch.float32)
    ops.gated_residual(x, y, gate).sum().backward()
    assert torch.equal(gate.grad, torch.zeros(2, 8))


def test_views_are_read_in_place(laws):
    joint = torch.randn(2, 2, 50, 64)
    x, y = (t.requires_grad_() for t in (joint[0, :, 13:], joint[1, :, :37]))
    gate = torch.randn(2, 192)[:, 64:128].requires_grad_()
    laws.error_rule(ops.gated_residual, eager, [x, y, gate])


def test_branch_of_another_type(laws):
    """Under autocast the branch is bfloat16 while the residual stream may be float32."""
    x, y, gate = inputs((2, 7, 24), torch.float32)
    branch = y.detach().bfloat16().requires_grad_()
    out = ops.gated_residual(x, branch, gate)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert branch.grad.dtype == torch.bfloat16


def test_threads(kernel_laws, dtype):
    kernel_laws.same_bits_for_any_thread_count(ops.gated_residual, inputs((2, 700, 130), dtype))


def test_compile(laws, dtype):
    laws.compiles_without_a_break(ops.gated_residual, inputs((2, 7, 24), dtype))


def test_checkpoint(laws):
    laws.recomputes_the_same_bits(ops.gated_residual, inputs((2, 7, 24), torch.bfloat16))


def test_opcheck(kernel_laws):
    torch.library.opcheck(
        torch.ops.vidgen.gated_residual.default, tuple(inputs((2, 5, 9), torch.float32))
    )


def test_float64_gradients():
    shapes = [(2, 3, 5), (2, 3, 5), (2, 5)]
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(ops.gated_residual, tensors)


def test_wrong_shape_is_named(kernel_laws):
    x, y, gate = inputs((2, 5, 9), torch.float32)
    with pytest.raises(ValueError, match=r"y: has shape \(2, 4, 9\), expected \(2, 5, 9\)"):
        ops.gated_residual(x, y[:, :4], gate)


def test_a_large_result_has_the_bits_of_its_parts(kernel_laws, dtype):
    """Kernels may store more than 16 MiB past the caches."""
    tokens = (20 << 20) // (1040 * dtype.itemsize)
    x, y = (torch.randn(1, tokens, 1040).to(dtype) for _ in range(2))
    gate = torch.randn(1, 1040).to(dtype)
    whole = ops.gated_residual(x, y, gate)
    half = tokens // 2
    parts = [ops.gated_residual(x[:, p], y[:, p], gate) for p in (slice(half), slice(half, None))]
    assert torch.equal(whole, torch.cat(parts, dim=1))
