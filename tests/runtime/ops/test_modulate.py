import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidgen.runtime import ops

SHAPES = [(1, 1, 3), (2, 9, 101), (2, 37, 101), (1, 133, 256), (3, 5, 1000), (1, 9, 8192)]


def eager(x, shift, scale, eps=1e-6):
    normal = F.layer_norm(x, x.shape[-1:], eps=eps)
    return (1 + scale[:, None]) * normal + shift[:, None]


def inputs(shape, dtype, mean=0.0):
    batch, _, width = shape
    x = (torch.randn(shape) * 2 + mean).to(dtype).requires_grad_()
    vectors = [torch.randn(batch, width).to(dtype).requires_grad_() for _ in range(2)]
    return [x, *vectors]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_rule(laws, shape, dtype):
    laws.error_rule(ops.modulate, eager, inputs(shape, dtype))


def test_one_feature(laws):
    """Its normalised value is 0 whatever it is."""
    x, shift, scale = inputs((2, 3, 1), torch.float32)
    out = ops.modulate(x, shift, scale)
    assert torch.equal(out, shift[:, None].expand(2, 3, 1))
    out.sum().backward()
    assert x.grad.abs().max() < 1e-3


def test_large_mean(laws):
    laws.error_rule(ops.modulate, eager, inputs((2, 19, 200), torch.float32, mean=1e4))


def test_one_outlier_does_not_drown_the_rest(laws):
    x, shift, scale = inputs((1, 4, 512), torch.float32)
    with torch.no_grad():
        x[..., 0] = 3e4
    laws.error_rule(ops.modulate, eager, [x, shift, scale])


def test_denormals(laws):
    x, shift, scale = inputs((1, 4, 40), torch.bfloat16)
    tiny = [(t.detach() * 1e-39).requires_grad_() for t in (x, shift)]
    laws.error_rule(ops.modulate, eager, [*tiny, scale])


def test_non_finite(laws, dtype):
    x, shift, scale = inputs((2, 6, 50), dtype)
    with torch.no_grad():
        x[0, 1, 3] = float("nan")
        x[1, 2, 49] = float("inf")
        shift[1, 0] = float("-inf")
    laws.passes_on_non_finite_values(ops.modulate, [x, shift, scale])


def test_no_tokens(laws):
    x, shift, scale = inputs((2, 0, 8), torch.float32)
    out = ops.modulate(x, shift, scale)
    assert out.shape == (2, 0, 8)
    out.sum().backward()
    assert torch.equal(shift.grad, torch.zeros(2, 8))


def test_views_are_read_in_place(laws):
    """A slice of a joint buffer, and vectors that are chunks of one projection."""
    joint = torch.randn(2, 50, 64)
    x = joint[:, 13:].requires_grad_()
    shift, scale = (v.requires_grad_() for v in torch.randn(2, 128).chunk(2, dim=-1))
    laws.error_rule(ops.modulate, eager, [x, shift, scale])


def test_transposed_input(laws):
    x = torch.randn(2, 64, 9).transpose(1, 2).requires_grad_()
    shift, scale = torch.randn(2, 2, 64)
    laws.error_rule(ops.modulate, eager, [x, shift, scale])


def test_expanded_gradient(laws):
    x, shift, scale = inputs((2, 7, 24), torch.float32)
    found = torch.autograd.grad(ops.modulate(x, shift, scale).sum(), [x, shift, scale])
    expected = torch.autograd.grad(eager(x, shift, scale).sum(), [x, shift, scale])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_vectors_of_another_type(laws):
    x, shift, scale = inputs((2, 7, 24), torch.bfloat16)
    shift, scale = (t.detach().float().requires_grad_() for t in (shift, scale))
    out = ops.modulate(x, shift, scale)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert (x.grad.dtype, shift.grad.dtype) == (torch.bfloat16, torch.float32)


def test_autocast(laws):
    x, shift, scale = inputs((2, 7, 24), torch.float32)
    expected = ops.modulate(x, shift, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.modulate(x, shift, scale), expected)


def test_threads(kernel_laws, dtype):
    kernel_laws.same_bits_for_any_thread_count(ops.modulate, inputs((2, 700, 130), dtype))


def test_compile(laws, dtype):
    laws.compiles_without_a_break(ops.modulate, inputs((2, 7, 24), dtype))


def test_checkpoint(laws):
    laws.recomputes_the_same_bits(ops.modulate, inputs((2, 7, 24), torch.bfloat16))


def test_opcheck(kernel_laws):
    torch.library.opcheck(
        torch.ops.vidgen.modulate.default, (*inputs((2, 5, 9), torch.float32), 0.1)
    )


def test_meta():
    with torch.device("meta"):
        out = ops.modulate(torch.empty(2, 5, 9), torch.empty(2, 9), torch.empty(2, 9))
    assert out.shape == (2, 5, 9)


def test_float64_gradients():
    tensors = [
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(2, 3, 5)] + [(2, 5)] * 2
    ]
    assert torch.autograd.gradcheck(ops.modulate, tensors)


def test_wrong_shape_is_named(kernel_laws):
    x, shift, scale = inputs((2, 5, 9), torch.float32)
    with pytest.raises(ValueError, match=r"scale: has shape \(2, 8\), expected \(2, 9\)"):
        ops.modulate(x, shift, scale[:, :8])


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 40),
    width=st.integers(3, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
)
def test_any_shape(kernel_laws, batch, tokens, width, dtype, scale):
    x, shift, factor = inputs((batch, tokens, width), dtype)
    x = (x.detach() * scale).requires_grad_()
    kernel_laws.error_rule(ops.modulate, eager, [x, shift, factor])
