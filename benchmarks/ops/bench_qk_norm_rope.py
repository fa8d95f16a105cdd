import pytest
import torch
import torch.nn.functional as F

from vidgen.runtime import ops


def turned(x, scale, cos, sin):
    normal = F.rms_norm(x, x.shape[-1:], scale, 1e-6)
    first, second = normal.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def plain(q, k, q_scale, k_scale, cos, sin):
    return turned(q, q_scale, cos, sin), turned(k, k_scale, cos, sin)


@pytest.fixture
def inputs(size, device, dtype):
    head = size.width // size.heads
    shapes = [(1, size.tokens, size.heads, head)] * 2 + [(head,)] * 2
    tensors = [torch.randn(s, device=device).to(dtype).requires_grad_() for s in shapes]
    angle = torch.rand(size.tokens, head // 2, device=device) * 100
    return [*tensors, angle.cos(), angle.sin()]


def test_forward(bench, inputs):
    bench.forward(ops.qk_norm_rope, plain, inputs, 4 * inputs[0].nbytes)


def test_backward(bench, inputs):
    bench.backward(ops.qk_norm_rope, plain, inputs, 6 * inputs[0].nbytes)
