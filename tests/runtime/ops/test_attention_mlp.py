import pytest
import torch
import torch.nn.functional as F

from vidgen.runtime import ops

# batch, tokens, heads, head width, hidden features
SHAPES = [(1, 1, 1, 2, 1), (2, 19, 3, 32, 40), (1, 40, 24, 128, 7), (2, 9, 2, 256, 0)]


def joined(shape, dtype):
    """The op with the promise it needs, the same in eager torch, and their inputs."""
    batch, tokens, heads, width, hidden = shape
    attended = torch.randn(batch, tokens, heads, width).to(dtype).requires_grad_()
    packed = torch.randn(batch, tokens, 3 * heads * width + hidden).to(dtype).requires_grad_()
    angle = torch.rand(tokens, width // 2)
    scale = torch.ones(width, dtype=dtype)

    def op(attended, packed):
        *_, mlp = ops.qkv_mlp(packed, scale, scale, angle.cos(), angle.sin(), heads)
        return ops.attention_mlp(attended, packed, mlp)

    def eager(attended, packed):
        mlp = F.gelu(packed[..., 3 * heads * width :], approximate="tanh")
        return torch.cat((attended.flatten(2), mlp), dim=-1)

    return op, eager, [attended, packed]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_rule(laws, shape, dtype):
    laws.error_rule(*joined(shape, dtype))


def test_a_projection_that_is_a_view(laws):
    op, eager, (attended, packed) = joined(SHAPES[1], torch.float32)
    wide = torch.randn(2, 19, packed.shape[2] + 7)[..., 3:-4].requires_grad_()
    laws.error_rule(op, eager, [attended, wide])


def test_threads(kernel_laws, dtype):
    op, _, inputs = joined((2, 110, 3, 64, 50), dtype)
    kernel_laws.same_bits_for_any_thread_count(op, inputs)


def test_opcheck(kernel_laws):
    attended, packed = torch.randn(2, 5, 2, 8, requires_grad=True), torch.randn(2, 5, 61)
    mlp = torch.randn(2, 5, 13, requires_grad=True)
    torch.library.opcheck(torch.ops.vidgen.attention_mlp.default, (attended, packed, mlp))
