import pytest
import torch

from vidgen.runtime import ops
from vidgen.runtime.ops.adamw import Place, random_bits, round_randomly

SHAPES = [(1, 1), (3, 101), (37, 8), (5, 1000), (2, 4104)]
STATES = [torch.float32, torch.bfloat16]
SETTINGS = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-12, "weight_decay": 0.1}
PLACE = Place((0xDEADBEEF, 0x9E3779B9), 7, 1003)


def inputs(shape, states):
    param, grad, average = (torch.randn(shape) for _ in range(3))
    grad *= 10.0 ** torch.randint(-6, 2, shape)
    exp_avg = (0.1 * torch.randn(shape)).to(states)
    exp_avg_sq = (0.01 * torch.randn(shape).square()).to(states)
    return [param, grad, exp_avg, exp_avg_sq, average]


def run(tensors, step=3, place=PLACE, follow=0.25):
    found = [t.clone() for t in tensors]
    ops.adamw(*found, **SETTINGS, step=step, place=place, follow=follow)
    return found


def exact(tensors, step=3, follow=0.25):
    p, g, m, v, average = (t.double() for t in tensors)
    lr, (beta1, beta2) = SETTINGS["lr"], SETTINGS["betas"]
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    root = (v / (1 - beta2**step)).sqrt() + SETTINGS["eps"]
    p = p - lr * SETTINGS["weight_decay"] * p - lr * m / (1 - beta1**step) / root
    return p, g, m, v, average + follow * (p - average)


@pytest.mark.parametrize("states", STATES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_step_beside_fp64(laws, shape, states):
    tensors = inputs(shape, states)
    p, g, m, v, average = run(tensors)
    assert torch.equal(g, tensors[1])
    wanted_p, _, wanted_m, wanted_v, wanted_average = exact(tensors)
    wanted_all = (wanted_p, wanted_m, wanted_v, wanted_average)
    for ours, wanted in zip((p, m, v, average), wanted_all, strict=True):
        # A moment in bfloat16 is one of its two neighbours there.
        unit = 2**-7 if ours.dtype == torch.bfloat16 else 4e-6
        small = 1e-6 if ours.dtype == torch.float32 else 1e-9
        torch.testing.assert_close(ours.double(), wanted, rtol=unit, atol=small)


@pytest.mark.parametrize("states", STATES, ids=["fp32", "bf16"])
def test_every_implementation_rounds_alike(laws, states):
    """Where float32 arithmetic differs in its last bit, a moment may fall on the other side."""
    tensors = inputs((37, 1003), states)
    if laws.implementation == "triton" and tensors[0].device.type == "cpu":
        tensors = [t[:3] for t in tensors]
    ours = run(tensors)
    with ops.use("reference"):
        plain = run(tensors)
    for one, two in zip(ours[2:4], plain[2:4], strict=True):
        if states == torch.bfloat16:
            assert (one != two).double().mean() < 2e-3
        torch.testing.assert_close(
            one, two, rtol=2**-7 if states == torch.bfloat16 else 1e-5, atol=1e-9
        )


@pytest.mark.parametrize("states", STATES, ids=["fp32", "bf16"])
def test_parts_of_a_tensor_get_the_bits_of_the_whole(laws, states):
    tensors = inputs((6, 133), states)
    whole = run(tensors, place=Place((1, 2), 0, 133))
    for rows, columns in [
        (slice(0, 2), slice(0, 133)),
        (slice(2, 6), slice(0, 133)),
        (slice(1, 5), slice(40, 93)),
    ]:
        first = rows.start * 133 + columns.start
        part = run([t[rows, columns] for t in tensors], place=Place((1, 2), first, 133))
        for one, two in zip(part, whole, strict=True):
            assert torch.equal(one, two[rows, columns])


def test_without_an_average(laws):
    tensors = inputs((3, 40), torch.bfloat16)
    followed = run(tensors)
    alone = [t.clone() for t in tensors[:4]]
    ops.adamw(*alone, None, **SETTINGS, step=3, place=PLACE)
    for one, two in zip(alone, followed, strict=False):
        assert torch.equal(one, two)


def test_no_elements(laws):
    empty = [torch.empty(0, 8) for _ in range(5)]
    run(empty)


def test_rounding_keeps_the_mean_where_the_nearest_would_stand_still(laws):
    """A thousand steps of a second moment towards a constant square, from half of it: to the
    nearest it stops at once, rounded at random it arrives as fp32's does."""
    size = (4, 1024)
    tensors = [torch.zeros(size), torch.ones(size), torch.zeros(size), torch.full(size, 0.5)]
    steps = 8 if laws.implementation == "triton" else 1000
    found = [*tensors[:2], tensors[2].bfloat16(), tensors[3].bfloat16()]
    for step in range(1, steps + 1):
        ops.adamw(*found, None, **SETTINGS, step=step, place=Place((step, 3 * step), 0, 1024))
    wanted = 1 - 0.5 * 0.999**steps
    assert found[3].double().mean().item() == pytest.approx(wanted, rel=2e-3)
    nearest = (0.999 * tensors[3] + 0.001).bfloat16()
    assert torch.equal(nearest, tensors[3].bfloat16())  # it would never have moved


def test_random_bits_are_even_and_differ_by_step():
    like = torch.empty(64, 1024)
    one = random_bits(like, [123, 456, 0, 1024])
    two = random_bits(like, [124, 456, 0, 1024])
    for bits in (one, two, one ^ two):
        for bit in range(32):
            assert (bits >> bit & 1).double().mean().item() == pytest.approx(0.5, abs=0.01)
    assert len(one.unique()) == one.numel()  # a hash of 32 bits to 32 is one to one


def test_rounding_at_random_leaves_what_is_not_finite():
    odd = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0, 1.0])
    rounded = round_randomly(odd, torch.full((6,), 0xFFFF), torch.bfloat16)
    torch.testing.assert_close(rounded.float(), odd, equal_nan=True, rtol=0, atol=0)


def test_non_finite_gradients(laws):
    tensors = inputs((2, 50), torch.bfloat16)
    tensors[1][0, 3], tensors[1][1, 49] = float("nan"), -float("nan")
    found = run(tensors)
    wanted = tensors[1].isnan()
    for t in (found[0], found[2], found[3], found[4]):
        assert torch.equal(t.isnan(), wanted)


def test_threads(kernel_laws):
    tensors = inputs((700, 130), torch.bfloat16)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(run(tensors))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_opcheck(kernel_laws):
    arguments = (
        *inputs((3, 9), torch.bfloat16),
        [0.999, 0.1, 0.9, 0.1, 1e-8, 0.01, 1.0, 0.5],
        [1, 2, 0, 9],
    )
    torch.library.opcheck(torch.ops.vidgen.adamw.default, arguments)


def test_wrong_types_are_named(kernel_laws):
    tensors = inputs((3, 9), torch.float32)
    tensors[3] = tensors[3].bfloat16()
    with pytest.raises(ValueError, match="exp_avg_sq: has another element type"):
        run(tensors)
    tensors = inputs((3, 9), torch.float32)
    tensors[1] = tensors[1][:, :8]
    with pytest.raises(ValueError, match=r"grad: has shape \(1, 3, 8\), expected \(1, 3, 9\)"):
        run(tensors)
