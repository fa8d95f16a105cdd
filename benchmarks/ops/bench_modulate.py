import pytest
import torch
import torch.nn.functional as F

from vidgen.runtime import ops


def plain(x, shift, scale):
    return (1 + scale[:, None]) * F.layer_norm(x, x.shape[-1:], eps=1e-6) + shift[:, None]


@pytest.fixture
def inputs(size, device, dtype):
    shapes = [(1, size.tokens, size.width), (1, size.width), (1, size.width)]
    return [torch.randn(s, device=device).to(dtype).requires_grad_() for s in shapes]


def test_forward(bench, inputs):
    bench.forward(ops.modulate, plain, inputs, 2 * inputs[0].nbytes)


def test_backward(bench, inputs):
    bench.backward(ops.modulate, plain, inputs, 3 * inputs[0].nbytes)
