import pytest
import torch
import torch.nn.functional as F

from vidgen.runtime import ops

SHAPES = [(1,), (7, 33), (2, 9, 101), (2, 37, 101), (2, 3, 5, 64), (1, 3, 8193)]


def eager(x):
    return F.gelu(x, approximate="tanh")


def inputs(shape, dtype, spread=2.0):
    return [(torch.randn(shape) * spread).to(dtype).requires_grad_()]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_rule(laws, shape, dtype):
    laws.error_rule(ops.gelu_tanh, eager, inputs(shape, dtype))


@pytest.mark.parametrize("spread", [1e-30, 1e-3, 30.0])
def test_small_and_large_values(laws, dtype, spread):
    laws.error_rule(ops.gelu_tanh, eager, inputs((4, 300), dtype, spread))


def test_every_bfloat16(laws):
    """Every finite number of the type, where the result is to the last place what float64 gives."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = x[x.isfinite() & (x.abs() < 1e12)]
    exact = eager(x.double())
    found = ops.gelu_tanh(x).double()
    # Triton's interpreter cuts bfloat16 off where a GPU rounds. The cubic's coefficients in float32
    # leave their mark only where the result is near 0.
    places = 7 if laws.implementation == "triton" else 8
    assert torch.all((found - exact).abs() <= 2**-places * exact.abs() + 1e-6)


def test_non_finite(laws, dtype):
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), -1e4, 1e4]).to(dtype)
    laws.passes_on_non_finite_values(ops.gelu_tanh, [x.requires_grad_()])


def test_part_of_a_wider_row(laws):
    """The perceptron's share of a single block's joint projection is read in place."""
    joint = torch.randn(2, 9, 96)
    laws.error_rule(ops.gelu_tanh, eager, [joint[..., 32:].requires_grad_()])


def test_transposed_input(laws):
    x = torch.randn(3, 4, 5, 6).permute(3, 1, 0, 2).requires_grad_()
    laws.error_rule(ops.gelu_tanh, eager, [x])


@pytest.mark.parametrize("shape", [(9, 64), (2, 9, 64), (2, 3, 4, 64)])
def test_into_the_right_part_of_a_buffer(laws, shape, dtype):
    x = (torch.randn(shape) * 2).to(dtype)
    buffer = torch.full((*shape[:-1], 96), 7.0, dtype=dtype)
    result = ops.gelu_tanh(x, out=buffer[..., 32:])
    assert torch.equal(buffer[..., 32:], ops.gelu_tanh(x))
    assert torch.equal(buffer[..., :32], torch.full_like(buffer[..., :32], 7.0))
    assert result.data_ptr() == buffer[..., 32:].data_ptr()


def test_into_a_transposed_buffer(laws):
    x, buffer = torch.randn(3, 4, 5), torch.zeros(5, 4, 3)
    ops.gelu_tanh(x, out=buffer.transpose(0, 2))
    assert torch.equal(buffer, ops.gelu_tanh(x).transpose(0, 2))


def test_out_has_no_gradient_and_must_fit(laws):
    x = torch.randn(2, 3)
    with pytest.raises(RuntimeError, match="has no gradient"):
        ops.gelu_tanh(x.requires_grad_(), out=torch.empty(2, 3))
    with pytest.raises(ValueError, match=r"out is torch.float32 \(2, 4\), expected"):
        ops.gelu_tanh(x, out=torch.empty(2, 4))


def test_out_compiles(laws):
    def into(x):
        buffer = torch.zeros(2, 5)
        ops.gelu_tanh(x, out=buffer[:, 2:])
        return buffer

    laws.compiles_without_a_break(into, [torch.randn(2, 3)])


def test_empty(laws):
    x = torch.empty(2, 0, 8, requires_grad=True)
    ops.gelu_tanh(x).sum().backward()
    assert x.grad.shape == (2, 0, 8)


def test_threads(kernel_laws, dtype):
    kernel_laws.same_bits_for_any_thread_count(ops.gelu_tanh, inputs((2, 300, 130), dtype))


def test_compile(laws, dtype):
    laws.compiles_without_a_break(ops.gelu_tanh, inputs((2, 7, 24), dtype))


def test_checkpoint(laws):
    laws.recomputes_the_same_bits(ops.gelu_tanh, inputs((2, 7, 24), torch.bfloat16))


def test_opcheck(kernel_laws):
    torch.library.opcheck(torch.ops.vidgen.gelu_tanh.default, tuple(inputs((2, 9), torch.float32)))
    torch.library.opcheck(
        torch.ops.vidgen.gelu_tanh_out.default, (torch.randn(2, 9), torch.zeros(2, 12)[:, 3:])
    )


def test_float64_gradients():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.gelu_tanh, [x])
