"""The CUDA attention and merge kernels against fp64 by the error rule, under the emulator."""

import pytest
import torch

HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=HALVES, ids=["bf16", "fp16"])
def half(request):
    return request.param


def dense_mask(queries, keys, lengths, blocks):
    """bool (B or 1, H or 1, M, N)."""
    seen = torch.ones(1, 1, queries, keys, dtype=torch.bool)
    if blocks is not None:
        rows, columns = torch.arange(queries) // 128, torch.arange(keys) // 64
        seen = blocks.bool()[:, :, rows][:, :, :, columns]
    if lengths is not None:
        seen = seen & (torch.arange(keys) < lengths[:, None])[:, None, None]
    return seen


def definition(scale, lengths=None, blocks=None):
    """Attention in the type of its inputs: out (B, M, H, D) and lse (B, H, M)."""

    def attention(q, k, v):
        seen = dense_mask(q.shape[1], k.shape[1], lengths, blocks)
        scores = torch.einsum("bmhd,bnhd->bhmn", q, k) * scale
        scores = scores.masked_fill(~seen, -torch.inf)
        wide = torch.promote_types(q.dtype, torch.float32)
        lse = torch.logsumexp(scores.to(wide), dim=-1)
        origin = torch.where(lse.isneginf(), 0.0, lse)[..., None]
        weights = torch.exp(scores.to(wide) - origin).to(q.dtype)
        return torch.einsum("bhmn,bnhd->bmhd", weights, v), lse

    return attention


class Case:
    """Inputs on guarded memory, and what the kernels make of them."""

    def __init__(self, emulator, shape, dtype, lengths=None, blocks=None, wide=False):
        batch, queries, keys, heads, width = shape
        memory = emulator.memory
        self.emulator, self.dtype, self.scale = emulator, dtype, width**-0.5
        result = torch.float32 if wide else dtype

        def heads_of(length, kind=dtype):
            return memory.copy(torch.randn(batch, length, heads, width).to(kind), gap=8)

        def empty(length):
            return memory.empty((batch, length, heads, width), result)

        self.q, self.k, self.v = heads_of(queries), heads_of(keys), heads_of(keys)
        self.lengths = None if lengths is None else memory.copy(lengths)
        self.blocks = None if blocks is None else memory.copy(blocks)
        self.out, self.lse = empty(queries), memory.empty((batch, heads, queries), torch.float32)
        self.grad_out = heads_of(queries, result)
        self.grad_lse = memory.copy(torch.randn(batch, heads, queries))
        self.grads = empty(queries), empty(keys), empty(keys)

    @property
    def inputs(self):
        return [self.q, self.k, self.v, self.lengths, self.blocks]

    def forward(self):
        self.emulator.run("attention_forward", self.inputs, [self.out, self.lse], self.scale)

    def backward(self, grad_lse):
        given = [*self.inputs, self.out, self.lse, self.grad_out, grad_lse]
        self.emulator.run("attention_backward", given, self.grads, self.scale)

    def check(self, error_rule):
        """Forward and backward by the error rule; lse has a gradient too."""
        self.forward()
        self.backward(self.grad_lse)
        function = definition(self.scale, self.lengths, self.blocks)
        rule = error_rule(function, [self.q, self.k, self.v], [self.grad_out, self.grad_lse])
        nothing = rule.exact[1].isneginf()
        assert torch.equal(self.lse.isneginf(), nothing)
        for lse in (self.lse, rule.exact[1], rule.plain[1]):
            lse.masked_fill_(nothing, 0.0)
        rule.check(self.out, self.lse, *self.grads)
        counts = self.emulator.counts()
        assert counts["bank_conflicts"] == 0
        return counts


SHAPES = [
    # B, M, N, H, D
    (1, 1, 1, 1, 64),
    (2, 7, 129, 2, 64),
    (1, 129, 7, 2, 128),
    (1, 129, 129, 1, 128),
    (2, 33, 65, 1, 32),
    (1, 130, 70, 1, 96),
    (1, 65, 67, 2, 256),
    (1, 129, 65, 1, 192),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_rule(emulator, error_rule, shape, half):
    Case(emulator, shape, half).check(error_rule)


@pytest.mark.parametrize("width", [8, 40, 72, 112, 160, 224])
def test_widths_between_those_of_the_tiles(emulator, error_rule, width):
    Case(emulator, (1, 37, 70, 2, width), torch.bfloat16).check(error_rule)


def test_results_and_gradients_in_fp32(emulator, error_rule, half):
    """As a ring wants them: its parts are added before they are rounded."""
    Case(emulator, (1, 70, 66, 2, 64), half, wide=True).check(error_rule)


@pytest.mark.parametrize("width", [64, 128, 256])
def test_key_lengths(emulator, error_rule, width):
    lengths = torch.tensor([0, 1, 64, 69, 200], dtype=torch.int32)
    case = Case(emulator, (5, 5, 70, 1, width), torch.bfloat16, lengths)
    for b, length in enumerate(lengths.tolist()):  # what lies behind is never looked at
        case.k[b, length:], case.v[b, length:] = float("nan"), float("inf")
    case.forward()
    case.backward(case.grad_lse)
    assert (case.out[0] == 0).all()
    assert case.lse[0].isneginf().all()
    for b, length in enumerate(lengths.tolist()):
        for grad in case.grads[1:]:
            assert (grad[b, length:] == 0).all()
        case.k[b, length:], case.v[b, length:] = 0, 0
    case.check(error_rule)


@pytest.mark.parametrize("blocks_shape", [(1, 1), (2, 1), (1, 3), (2, 3)], ids=str)
def test_block_mask(emulator, error_rule, blocks_shape):
    blocks = torch.randint(0, 2, (*blocks_shape, 2, 3), dtype=torch.uint8)
    blocks[..., 0, :] = 0  # queries that see nothing
    blocks[..., 1, 2] = 1
    lengths = torch.tensor([190, 140], dtype=torch.int32)
    Case(emulator, (2, 140, 190, 3, 32), torch.bfloat16, lengths, blocks).check(error_rule)


@pytest.mark.parametrize("width", [64, 128, 256])
def test_masked_blocks_cost_nothing(emulator, width):
    shape = (1, 256, 256, 1, width)
    products = []
    for blocks in (torch.ones(2, 4), torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0]])):
        case = Case(emulator, shape, torch.bfloat16, None, blocks.to(torch.uint8)[None, None])
        emulator.counts()
        case.forward()
        forward = emulator.counts()["matrix_products"]
        case.backward(None)
        products.append((forward, emulator.counts()["matrix_products"]))
    (forward, backward), (half_forward, half_backward) = products
    assert half_forward * 2 == forward
    assert half_backward * 2 == backward


def test_no_keys_and_no_queries(emulator):
    case = Case(emulator, (2, 5, 0, 2, 64), torch.bfloat16)
    case.forward()
    case.backward(None)
    assert (case.out == 0).all()
    assert case.lse.isneginf().all()
    assert (case.grads[0] == 0).all()
    case = Case(emulator, (2, 0, 5, 2, 64), torch.bfloat16)
    case.forward()
    case.backward(None)
    assert (case.grads[1] == 0).all()
    assert (case.grads[2] == 0).all()


def test_nan_spreads_to_what_sees_it(emulator, half):
    case = Case(emulator, (1, 130, 70, 2, 64), half)
    case.q[0, 3, 0, 5] = float("nan")
    case.forward()
    expected = torch.zeros_like(case.out, dtype=torch.bool)
    expected[0, 3, 0] = True
    assert torch.equal(case.out.isnan(), expected)
    assert torch.equal(case.lse.isnan(), expected[..., 0].transpose(1, 2))
    case.q[0, 3, 0, 5] = 0
    case.k[0, 69, 1, 0] = float("nan")
    case.forward()
    expected.zero_()
    expected[:, :, 1] = True
    assert torch.equal(case.out.isnan(), expected)
    case.backward(None)
    assert case.grads[0][:, :, 1].isnan().all()
    assert not case.grads[0][:, :, 0].isnan().any()


def test_scores_far_apart(emulator, error_rule, half):
    """The largest score comes last; the others vanish, and nothing overflows."""
    case = Case(emulator, (1, 40, 140, 1, 64), half)
    case.k[:, 135] = case.q[:, :1].mean(dim=1) * 40
    case.check(error_rule)


def test_parts_of_a_ring_add_up(emulator, error_rule):
    """Two calls over half the keys each, merged, then differentiated with the merged lse."""
    whole = Case(emulator, (1, 70, 130, 2, 64), torch.bfloat16, wide=True)
    memory, cut, parts = emulator.memory, 64, []
    whole.forward()
    for keys in (slice(None, cut), slice(cut, None)):
        out, lse = (
            memory.empty(whole.out.shape, torch.float32),
            memory.empty((1, 2, 70), torch.float32),
        )
        given = [whole.q, whole.k[:, keys], whole.v[:, keys], None, None]
        emulator.run("attention_forward", given, [out, lse], whole.scale)
        parts.append((out, lse))
    (out, lse), (other_out, other_lse) = parts
    emulator.launch("merge_forward", out, lse, other_out, other_lse, out, lse)  # in place
    torch.testing.assert_close(out, whole.out, rtol=0, atol=2e-3)
    torch.testing.assert_close(lse, whole.lse, rtol=1e-6, atol=1e-6)
    grad_q = torch.zeros_like(out)
    for keys in (slice(None, cut), slice(cut, None)):
        k, v = whole.k[:, keys], whole.v[:, keys]
        grads = [memory.empty(t.shape, torch.float32) for t in (whole.q, k, v)]
        given = [whole.q, k, v, None, None, out, lse, whole.grad_out, whole.grad_lse]
        emulator.run("attention_backward", given, grads, whole.scale)
        grad_q += grads[0]
        whole.grads[1][:, keys], whole.grads[2][:, keys] = grads[1:]
    whole.grads[0].copy_(grad_q)
    rule = error_rule(
        definition(whole.scale), [whole.q, whole.k, whole.v], [whole.grad_out, whole.grad_lse]
    )
    rule.check(out, lse, *whole.grads)


def test_refusals(emulator):
    memory = emulator.memory

    def run(q):
        out, lse = memory.empty(q.shape, q.dtype), memory.empty((1, 1, 3), torch.float32)
        emulator.launch("attention_forward", q, q, q, None, None, out, lse, 1.0)

    with pytest.raises(ValueError, match="bfloat16 or float16"):
        run(memory.empty((1, 3, 1, 32), torch.float32))
    with pytest.raises(ValueError, match="multiples of 8 elements"):
        run(memory.empty((1, 3, 1, 36), torch.float16))
    with pytest.raises(ValueError, match="boundaries"):
        run(memory.empty((1, 3, 1, 32), torch.float16, gap=4))


def merged(out_a, lse_a, out_b, lse_b):
    gap = (lse_b - lse_a).transpose(1, 2)[..., None]
    out = out_a.to(lse_a.dtype) + torch.sigmoid(gap) * (out_b.to(lse_a.dtype) - out_a)
    return out, torch.logaddexp(lse_a, lse_b)


@pytest.mark.parametrize("shape", [(2, 5, 3, 64), (1, 9, 2, 33), (1, 1, 1, 300)], ids=str)
def test_merge(emulator, error_rule, shape, dtype):
    batch, length, heads, _ = shape
    memory = emulator.memory
    sums = (batch, heads, length)
    out_a, out_b = torch.randn(shape), torch.randn(shape).to(dtype)
    lse_a, lse_b = torch.randn(sums) * 3, torch.randn(sums) * 3
    given = [memory.copy(t) for t in (out_a, lse_a, out_b, lse_b)]
    grads = [memory.copy(torch.randn(shape)), memory.copy(torch.randn(sums))]
    found = [memory.empty(shape, torch.float32), memory.empty(sums, torch.float32)]
    found_grads = [memory.empty(t.shape, t.dtype) for t in given]
    emulator.run("merge_forward", given, found)
    emulator.run("merge_backward", [*grads, *given], found_grads)
    error_rule(merged, given, grads).check(*found, *found_grads)


def test_merge_with_nothing_and_with_much(emulator):
    """-inf stands for no keys; +-1e4 and equal sums neither overflow nor lose a side."""
    memory = emulator.memory
    lse_a = torch.tensor([-torch.inf, 2.0, -torch.inf, 1e4, -1e4, 1e4, float("nan")])
    lse_b = torch.tensor([-torch.inf, -torch.inf, 3.0, -1e4, 1e4, 1e4, 0.0])
    lse_a, lse_b = (memory.copy(t.view(1, 1, 7)) for t in (lse_a, lse_b))
    out_a, out_b = (memory.copy(torch.full((1, 7, 1, 8), value)) for value in (1.0, 3.0))
    out, lse = memory.empty((1, 7, 1, 8), torch.float32), memory.empty((1, 1, 7), torch.float32)
    emulator.run("merge_forward", [out_a, lse_a, out_b, lse_b], [out, lse])
    assert out[0, :6, 0, 0].tolist() == [0.0, 1.0, 3.0, 1.0, 3.0, 2.0]
    assert out[0, 6].isnan().all()
    joint = [-torch.inf, 2.0, 3.0, 1e4, 1e4, 1e4 + 0.6931472]
    torch.testing.assert_close(lse[0, 0, :6], torch.tensor(joint))
    grads = [memory.copy(torch.ones(1, 7, 1, 8)), memory.copy(torch.ones(1, 1, 7))]
    found = [memory.empty(t.shape, t.dtype) for t in (out_a, lse_a, out_b, lse_b)]
    emulator.run("merge_backward", [*grads, out_a, lse_a, out_b, lse_b], found)
    assert found[0][0, :6, 0, 0].tolist() == [0.0, 1.0, 0.0, 1.0, 0.0, 0.5]
    assert all(t[0, :6].isfinite().all() for t in found if t.dim() == 4)
