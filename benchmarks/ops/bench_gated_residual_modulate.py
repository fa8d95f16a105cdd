import pytest
import torch
import torch.nn.functional as F

from vidgen.runtime import ops


def plain(x, y, gate, shift, scale):
    residual = x + gate[:, None] * y
    normal = F.layer_norm(residual, x.shape[-1:], eps=1e-6)
    return residual, (1 + scale[:, None]) * normal + shift[:, None]


@pytest.fixture
def inputs(size, device, dtype):
    shapes = [(1, size.tokens, size.width)] * 2 + [(1, size.width)] * 3
    return [torch.randn(s, device=device).to(dtype).requires_grad_() for s in shapes]


def test_forward(bench, inputs):
    bench.forward(ops.gated_residual_modulate, plain, inputs, 4 * inputs[0].nbytes)


def test_backward(bench, inputs):
    bench.backward(ops.gated_residual_modulate, plain, inputs, 6 * inputs[0].nbytes)
