"""Every backend that runs here through the same cases, against attention in fp64."""

import pytest
import torch
from torch import Tensor

from vidgen.runtime.attention import BlockMask, attention
from vidgen.runtime.attention.backends import Needs
from vidgen.runtime.attention.table import TABLE

HERE = [b for b in TABLE if "cpu" in b.devices and not b.missing()]
NAMES = [b.name for b in HERE]


def serving(**more: object) -> list[str]:
    """The backends of this CPU that serve a call."""
    return [b.name for b in HERE if b.refusal(needs(**more)) is None]  # type: ignore[arg-type]


def needs(dtype: torch.dtype = torch.float32, *, dim: int = 32, **more: object) -> Needs:
    said = {"gradient": False, "lse": False, "mask": frozenset(), **more}
    return Needs("cpu", dtype, dim, **said)  # type: ignore[arg-type]


def inputs(
    q_length: int, k_length: int, dim: int = 32, dtype: torch.dtype = torch.float32, batch: int = 2
) -> list[Tensor]:
    """q, k, v and the gradient of the output."""
    lengths = (q_length, k_length, k_length, q_length)
    return [torch.randn(batch, n, 3, dim).to(dtype) for n in lengths]


def defined(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention as it is defined, in the inputs' own dtype; also the LSE."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v), scores.logsumexp(-1)


def with_gradients(function, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:  # type: ignore[no-untyped-def]
    q, k, v, grad = (x.detach().to(dtype) for x in tensors)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    out.backward(grad)
    return [out.detach(), *(x.grad for x in leaves)]  # type: ignore[list-item]


def check_rule(found: list[Tensor], eager: list[Tensor], exact: list[Tensor]) -> None:
    """No further from fp64 than twice what plain torch is in the same dtype."""
    for name, a, b, c in zip(("out", "dq", "dk", "dv"), found, eager, exact, strict=False):
        error, allowed = (float((x.double() - c).abs().max()) for x in (a, b))
        assert a.dtype == b.dtype
        # Once the result's own rounding, and that of the sums of unit numbers on the way to it.
        wide = torch.finfo(torch.promote_types(a.dtype, torch.float32)).eps
        tiny = torch.finfo(a.dtype).eps / 2 * float(c.abs().max()) + 64 * wide
        assert error <= 2 * allowed + tiny, f"{name}: off by {error:.2e}, eager by {allowed:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("q_length", "k_length", "dim"),
    [(1, 1, 64), (7, 7, 32), (129, 129, 64), (5, 263, 128), (131, 3, 40), (65, 64, 256)],
)
@pytest.mark.parametrize("backend", NAMES)
def test_output_and_gradients_by_the_error_rule(
    backend: str, q_length: int, k_length: int, dim: int, dtype: torch.dtype
) -> None:
    if backend not in serving(dtype=dtype, dim=dim):
        pytest.skip("have a dtype or a width that their backend does not take")
    given = inputs(q_length, k_length, dim, dtype)
    found = with_gradients(lambda q, k, v: attention(q, k, v, backend=backend), given, dtype)
    eager = with_gradients(lambda q, k, v: defined(q, k, v)[0], given, dtype)
    exact = with_gradients(lambda q, k, v: defined(q, k, v)[0], given, torch.float64)
    check_rule(found, eager, exact)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_log_sum_exp_is_wide_and_right(backend: str, dtype: torch.dtype) -> None:
    if backend not in serving(dtype=dtype):
        pytest.skip("have a dtype or a width that their backend does not take")
    q, k, v, _ = inputs(9, 130, dtype=dtype)
    out, lse = attention(q, k, v, return_lse=True, backend=backend)
    exact_out, exact = defined(q.double(), k.double(), v.double())
    assert lse.shape == (2, 3, 9)
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close = 1e-4 if dtype == torch.bfloat16 else 2e-6  # some kernels' exp is as coarse as bf16
    torch.testing.assert_close(lse.double(), exact, atol=close, rtol=0)
    torch.testing.assert_close(out, attention(q, k, v, backend=backend))
    torch.testing.assert_close(out.double(), exact_out, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", NAMES)
def test_gradients_reach_through_the_log_sum_exp(backend: str, dtype: torch.dtype) -> None:
    if backend not in serving(dtype=dtype, gradient=True, lse=True):
        pytest.skip("have a dtype or a width that their backend does not take")
    given = inputs(70, 131, dtype=dtype)

    def of(function):  # type: ignore[no-untyped-def]
        def both(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out, lse = function(q, k, v)
            return out * lse.transpose(1, 2)[..., None].to(out.dtype)

        return both

    ours = of(lambda q, k, v: attention(q, k, v, return_lse=True, backend=backend))
    check_rule(
        with_gradients(ours, given, dtype),
        with_gradients(of(defined), given, dtype),
        with_gradients(of(defined), given, torch.float64),
    )


@pytest.mark.parametrize("backend", NAMES)
def test_the_log_sum_exp_alone_has_a_gradient(backend: str) -> None:
    leaves = [x.requires_grad_() for x in inputs(7, 66)[:3]]
    _, lse = attention(*leaves, return_lse=True, backend=backend)
    found = torch.autograd.grad(lse.square().sum(), leaves, materialize_grads=True)
    _, exact = defined(*leaves)
    expected = torch.autograd.grad(exact.square().sum(), leaves, materialize_grads=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", NAMES)
def test_strides_change_nothing(backend: str) -> None:
    """Heads cut out of a fused projection, heads across memory, and one key for all positions."""
    fused = torch.randn(2, 7, 3, 3, 32)
    q, k, v = fused.unbind(2)
    across = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    same = [q, k[..., :1].expand_as(k), v[:, :, :1].expand_as(v)]
    for given in ([q, k, v], across, same):
        leaves = [x.detach().requires_grad_() for x in given]
        out = attention(*leaves, backend=backend)
        torch.testing.assert_close(out, defined(*(x.detach().contiguous() for x in given))[0])
        # A gradient that lies across memory as well.
        grads = torch.autograd.grad(out.transpose(2, 3).square().sum(), leaves)
        plain = [x.detach().clone(memory_format=torch.contiguous_format) for x in given]
        expected = torch.autograd.grad(
            defined(*(x.requires_grad_() for x in plain))[0].square().sum(), plain
        )
        for a, b in zip(grads, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["auto", *NAMES])
@pytest.mark.parametrize(("q_length", "k_length"), [(3, 0), (0, 5), (0, 0)])
def test_no_keys_give_zeros_and_minus_infinity(backend: str, q_length: int, k_length: int) -> None:
    q, k, v, _ = inputs(q_length, k_length)
    if q_length:
        q[0, 0] = torch.nan
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = attention(*leaves, backend=backend)
    assert torch.equal(out, torch.zeros(2, q_length, 3, 32))
    with torch.no_grad():
        _, lse = attention(*leaves, return_lse=True, backend=backend)
    assert torch.equal(lse, torch.full((2, 3, q_length), -torch.inf))
    for grad, leaf in zip(torch.autograd.grad(out.sum(), leaves), leaves, strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("backend", NAMES)
def test_nan_spreads_where_it_is_seen_and_no_further(backend: str) -> None:
    q, k, v, _ = inputs(5, 70)
    q[0, 1, 2] = torch.nan
    k[1, 3, 0] = torch.nan
    out, lse = attention(q, k, v, return_lse=True, backend=backend)
    expected = torch.zeros(2, 5, 3, dtype=torch.bool)
    expected[0, 1, 2] = expected[1, :, 0] = True
    assert torch.equal(out.isnan().any(-1), expected)
    assert torch.equal(lse.isnan(), expected.transpose(1, 2))


@pytest.mark.parametrize("backend", NAMES)
def test_scores_beyond_the_exponential(backend: str) -> None:
    q, k, v, _ = inputs(4, 66)
    out, lse = attention(30 * q, 30 * k, v, return_lse=True, backend=backend)
    exact, exact_lse = defined(30 * q.double(), 30 * k.double(), v.double())
    assert exact_lse.max() > 1000  # exp overflows at 88
    torch.testing.assert_close(out.double(), exact, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(lse.double(), exact_lse, atol=0, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[0], k, v), "takes q"),
        (lambda q, k, v: (q, k, v[:, 1:]), "takes q"),
        (lambda q, k, v: (q[:, :, :2], k, v), "differ in batch, heads or head dim"),
        (lambda q, k, v: (q[..., :8], k, v), "differ in batch, heads or head dim"),
        (lambda q, k, v: (q.bfloat16(), k, v), "differ in dtype or device"),
    ],
)
def test_shapes_that_do_not_match(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        attention(*change(*inputs(4, 5)[:3]))


MASKED = serving(mask=frozenset({"block", "length"}))


@pytest.mark.parametrize("backend", MASKED)
def test_masked_attention_by_the_error_rule(backend: str) -> None:
    q, k, v, grad = inputs(300, 200)
    blocks = torch.rand(2, 3, 3, 4) < 0.5
    blocks[..., 0] = True  # every query keeps a key
    mask = BlockMask(blocks, torch.tensor([200, 70]))
    allowed = blocks.repeat_interleave(128, 2)[:, :, :300].repeat_interleave(64, 3)[..., :200]
    allowed = allowed & (torch.arange(200) < torch.tensor([200, 70])[:, None, None, None])
    given = [q, k, v, grad]
    found = with_gradients(
        lambda q, k, v: attention(q, k, v, mask=mask, backend=backend), given, torch.float32
    )
    eager = with_gradients(lambda q, k, v: defined(q, k, v, allowed)[0], given, torch.float32)
    exact = with_gradients(lambda q, k, v: defined(q, k, v, allowed)[0], given, torch.float64)
    check_rule(found, eager, exact)


@pytest.mark.parametrize("backend", MASKED)
def test_a_query_whose_keys_are_all_masked_is_as_without_keys(backend: str) -> None:
    q, k, v, _ = inputs(3, 70)
    blocks = torch.zeros(1, 3, 1, 2, dtype=torch.bool)
    blocks[:, 1:] = True
    mask = BlockMask(blocks, torch.tensor([70, 0]))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, lse = attention(*leaves, mask=mask, return_lse=True, backend=backend)
    seen = torch.tensor([[False, True, True], [False, False, False]])
    assert torch.equal(out.abs().sum((1, 3)) > 0, seen)
    assert torch.equal(lse.isfinite().all(-1), seen)
    assert torch.equal(lse.isneginf().all(-1), ~seen)
    finite = torch.where(lse.isneginf(), 0.0, lse)
    for grad in torch.autograd.grad(out.sum() + finite.sum(), leaves):
        assert grad.isfinite().all()
        assert torch.equal(grad.abs().sum((1, 3)) > 0, seen)
