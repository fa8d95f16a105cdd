import pytest
import torch

from vidgen.runtime import ops


def plain(x, y, gate):
    return x + gate[:, None] * y


@pytest.fixture
def inputs(size, device, dtype):
    shapes = [(1, size.tokens, size.width)] * 2 + [(1, size.width)]
    return [torch.randn(s, device=device).to(dtype).requires_grad_() for s in shapes]


def test_forward(bench, inputs):
    bench.forward(ops.gated_residual, plain, inputs, 3 * inputs[0].nbytes)


def test_backward(bench, inputs):
    bench.backward(ops.gated_residual, plain, inputs, 3 * inputs[0].nbytes)
