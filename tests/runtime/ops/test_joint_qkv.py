import pytest
import torch
import torch.nn.functional as F

from vidgen.runtime import ops

# batch, tokens of each stream, heads, head width
SHAPES = [(1, (1, 1), 1, 2), (2, (5, 14), 3, 32), (1, (37, 3), 24, 128), (2, (4, 5), 2, 256)]
SMALL = (2, (2, 5), 2, 16)  # where the interpreter of Triton would take long
HIDDEN = [0, 1, 40]


def turned(x, scale, cos, sin):
    first, second = F.rms_norm(x, x.shape[-1:], scale, 1e-6).chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def heads_of(packed, heads, width):
    return packed[..., : 3 * heads * width].unflatten(-1, (3, heads, width)).unbind(2)


def random(*shape, dtype):
    return torch.randn(shape).to(dtype).requires_grad_()


def angles(tokens, width):
    angle = torch.rand(tokens, width // 2) * 100
    return angle.cos(), angle.sin()


def dual(shape, dtype):
    """Two streams: the op, the same in eager torch, and their inputs."""
    batch, lengths, heads, width = shape
    cos, sin = angles(sum(lengths), width)
    packed = [random(batch, n, 3 * heads * width, dtype=dtype) for n in lengths]
    scales = [random(width, dtype=dtype) for _ in range(4)]

    def op(txt, img, *scales):
        return ops.joint_qkv((txt, img), scales[:2], scales[2:], cos, sin, heads)

    def eager(txt, img, *scales):
        tables = ((t[: lengths[0]], t[lengths[0] :]) for t in (cos, sin))
        (cos1, cos2), (sin1, sin2) = tables
        streams = heads_of(txt, heads, width), heads_of(img, heads, width)
        (q1, k1, v1), (q2, k2, v2) = streams
        q = turned(q1, scales[0], cos1, sin1), turned(q2, scales[1], cos2, sin2)
        k = turned(k1, scales[2], cos1, sin1), turned(k2, scales[3], cos2, sin2)
        return tuple(torch.cat(pair, dim=1) for pair in (q, k, (v1, v2)))

    return op, eager, [*packed, *scales]


def single(shape, hidden, dtype):
    """One stream and the activation of its last features."""
    batch, lengths, heads, width = shape
    tokens = sum(lengths)
    cos, sin = angles(tokens, width)
    inputs = [random(batch, tokens, 3 * heads * width + hidden, dtype=dtype)]
    inputs += [random(width, dtype=dtype) for _ in range(2)]

    def op(packed, q_scale, k_scale):
        q, k, v, mlp = ops.qkv_mlp(packed, q_scale, k_scale, cos, sin, heads)
        return q, k, ops.attention_mlp(v, packed, mlp)

    def eager(packed, q_scale, k_scale):
        q, k, v = heads_of(packed, heads, width)
        mlp = F.gelu(packed[..., 3 * heads * width :], approximate="tanh")
        turned_q, turned_k = turned(q, q_scale, cos, sin), turned(k, k_scale, cos, sin)
        return turned_q, turned_k, torch.cat((v.flatten(2), mlp), dim=-1)

    return op, eager, inputs


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_rule_of_two_streams(laws, shape, dtype):
    laws.error_rule(*dual(shape, dtype))


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_rule_of_one_stream(laws, shape, hidden, dtype):
    laws.error_rule(*single(shape, hidden, dtype))


def test_gradients_of_any_strides(laws):
    """Attention hands back gradients whose heads, not tokens, lie side by side."""
    op, eager, inputs = dual(SHAPES[1], torch.float32)
    grads = [torch.randn_like(t).transpose(1, 2).contiguous().transpose(1, 2) for t in op(*inputs)]
    found = torch.autograd.grad(op(*inputs), inputs, grads)
    expected = torch.autograd.grad(eager(*inputs), inputs, grads)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_projection_that_is_a_view(laws):
    op, eager, (packed, *scales) = single(SHAPES[1], 40, torch.float32)
    wide = torch.randn(2, packed.shape[1], packed.shape[2] + 7)[..., 3:-4].requires_grad_()
    laws.error_rule(op, eager, [wide, *scales])


def test_a_promise_read_as_numbers_is_nan(kernel_laws):
    _, _, (packed, q_scale, k_scale) = single(SHAPES[1], 40, torch.float32)
    *_, mlp = ops.qkv_mlp(packed, q_scale, k_scale, *angles(19, 32), 3)
    assert mlp.shape == (2, 19, 40)
    assert mlp.isnan().all()


def test_an_unused_promise_has_no_gradient(laws):
    """Features nobody asked for change nothing."""
    _, _, (packed, q_scale, k_scale) = single(SHAPES[1], 40, torch.float32)
    q, *_ = ops.qkv_mlp(packed, q_scale, k_scale, *angles(19, 32), 3)
    (grad,) = torch.autograd.grad(q.sum(), [packed])
    assert torch.equal(grad[..., 96:], torch.zeros_like(grad[..., 96:]))


def test_wrong_width_is_named(laws):
    with pytest.raises(ValueError, match="expected 288 features, 3 H D"):
        ops.joint_qkv(
            [torch.randn(1, 4, 289)], [torch.ones(32)], [torch.ones(32)], *angles(4, 32), 3
        )


def test_no_tokens(laws):
    op, _, inputs = dual((2, (0, 3), 2, 8), torch.float32)
    sum(t.sum() for t in op(*inputs)).backward()
    assert inputs[0].grad.shape == (2, 0, 48)
    assert torch.equal(inputs[2].grad, torch.zeros(8))


def test_threads(kernel_laws, dtype):
    for op, _, inputs in (
        dual((2, (40, 110), 3, 64), dtype),
        single((2, (40, 70), 3, 64), 50, dtype),
    ):
        kernel_laws.same_bits_for_any_thread_count(op, inputs)


def test_compile(laws, dtype):
    for op, _, inputs in (dual(SMALL, dtype), single(SMALL, 40, dtype)):
        laws.compiles_without_a_break(op, inputs)


def test_checkpoint(laws):
    for op, _, inputs in (dual(SMALL, torch.bfloat16), single(SMALL, 40, torch.bfloat16)):
        laws.recomputes_the_same_bits(op, inputs)


def test_opcheck(kernel_laws):
    _, _, (txt, img, *scales) = dual((2, (2, 3), 2, 8), torch.float32)
    arguments = ([txt, img], scales[:2], scales[2:], *angles(5, 8), 2, 0.1)
    # The promise makes gradients through it meaningless to a test of this op alone.
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(torch.ops.vidgen.joint_qkv.default, arguments, test_utils=tests)
