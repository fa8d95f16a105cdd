import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidgen.runtime import ops

# batch, tokens, heads, head width
SHAPES = [
    (1, 1, 1, 2),
    (2, 5, 3, 32),
    (2, 19, 3, 32),
    (1, 37, 24, 128),
    (2, 5, 2, 256),
    (1, 9, 40, 34),
]


def turned(x, scale, cos, sin, eps):
    normal = F.rms_norm(x, x.shape[-1:], scale, eps)
    first, second = normal.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def eager(q, k, q_scale, k_scale, cos, sin, eps=1e-6):
    return turned(q, q_scale, cos, sin, eps), turned(k, k_scale, cos, sin, eps)


def inputs(shape, dtype):
    _, tokens, _, width = shape
    q, k = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(2))
    scales = [torch.randn(width).to(dtype).requires_grad_() for _ in range(2)]
    angle = torch.rand(tokens, width // 2) * 100
    return [q, k, *scales, angle.cos(), angle.sin()]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_rule(laws, shape, dtype):
    laws.error_rule(ops.qk_norm_rope, eager, inputs(shape, dtype))


@pytest.mark.parametrize("layout", ["B L 3 H D", "B L 3HD", "B H L D"])
def test_strided_views(laws, layout):
    _, _, *scales_and_tables = inputs((2, 11, 3, 32), torch.float32)
    if layout == "B L 3 H D":
        q, k, _ = torch.randn(2, 11, 3, 3, 32).unbind(2)
    elif layout == "B L 3HD":
        q, k = (t.unflatten(-1, (3, 32)) for t in torch.randn(2, 11, 500)[..., :192].chunk(2, -1))
    else:
        q, k = torch.randn(2, 2, 3, 11, 32).transpose(2, 3)
    laws.error_rule(
        ops.qk_norm_rope, eager, [q.requires_grad_(), k.requires_grad_(), *scales_and_tables]
    )


def test_scales_of_another_type(laws):
    q, k, q_scale, k_scale, *tables = inputs((2, 11, 3, 32), torch.bfloat16)
    scales = [s.detach().float().requires_grad_() for s in (q_scale, k_scale)]
    q_out, _ = ops.qk_norm_rope(q, k, *scales, *tables)
    assert q_out.dtype == torch.bfloat16
    q_out.sum().backward()
    assert scales[0].grad.dtype == torch.float32


def test_text_keeps_its_place(laws):
    """Where the angle is 0 only the norm is left."""
    cos, sin = ops.rope_tables((2, 2, 2), (2, 2, 4), 1e4, text_len=3)
    q, k = torch.randn(2, 1, 11, 2, 8)
    q_out, _ = ops.qk_norm_rope(q, k, torch.ones(8), torch.ones(8), cos, sin)
    torch.testing.assert_close(q_out[:, :4], F.rms_norm(q, (8,), eps=1e-6)[:, :4])
    assert not torch.allclose(q_out[:, 4:], F.rms_norm(q, (8,), eps=1e-6)[:, 4:])


def test_non_finite(laws, dtype):
    q, k, *rest = inputs((2, 6, 2, 32), dtype)
    with torch.no_grad():
        q[0, 1, 1, 3] = float("nan")
        k[1, 2, 0, 9] = float("inf")
    laws.passes_on_non_finite_values(ops.qk_norm_rope, [q, k, *rest])


def test_no_tokens(laws):
    tensors = inputs((2, 0, 2, 8), torch.float32)
    sum(t.sum() for t in ops.qk_norm_rope(*tensors)).backward()
    assert torch.equal(tensors[2].grad, torch.zeros(8))


def test_threads(kernel_laws, dtype):
    kernel_laws.same_bits_for_any_thread_count(ops.qk_norm_rope, inputs((2, 150, 3, 64), dtype))


def test_compile(laws, dtype):
    laws.compiles_without_a_break(ops.qk_norm_rope, inputs((2, 7, 2, 32), dtype))


def test_checkpoint(laws):
    laws.recomputes_the_same_bits(ops.qk_norm_rope, inputs((2, 7, 2, 32), torch.bfloat16))


def test_opcheck(kernel_laws):
    tensors = inputs((2, 5, 2, 8), torch.float32)
    torch.library.opcheck(torch.ops.vidgen.qk_norm_rope.default, (*tensors, 0.1))


def test_float64_gradients():
    tensors = [
        t.detach().double().requires_grad_(i < 4)
        for i, t in enumerate(inputs((2, 3, 2, 4), torch.float32))
    ]
    assert torch.autograd.gradcheck(ops.qk_norm_rope, tensors)


def test_odd_head_is_refused(kernel_laws):
    with pytest.raises(
        ValueError, match="q: has heads of width 7, expected an even width up to 256"
    ):
        ops.qk_norm_rope(*torch.randn(2, 1, 4, 2, 7), *torch.randn(2, 7), *torch.randn(2, 4, 3))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batch=st.integers(1, 2),
    tokens=st.integers(1, 40),
    heads=st.integers(1, 40),
    pairs=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_shape(kernel_laws, batch, tokens, heads, pairs, dtype):
    kernel_laws.error_rule(
        ops.qk_norm_rope, eager, inputs((batch, tokens, heads, 2 * pairs), dtype)
    )
