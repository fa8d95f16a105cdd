import pytest
import torch
import torch.nn.functional as F

from vidgen.runtime import ops


def plain(x):
    return F.gelu(x, approximate="tanh")


@pytest.fixture
def inputs(size, device, dtype):
    x = torch.randn(1, size.tokens, size.width, device=device)
    return [x.to(dtype).requires_grad_()]


def test_forward(bench, inputs):
    bench.forward(ops.gelu_tanh, plain, inputs, 2 * inputs[0].nbytes)


def test_backward(bench, inputs):
    bench.backward(ops.gelu_tanh, plain, inputs, 3 * inputs[0].nbytes)
