import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vidgen.runtime import ops


def test_against_the_definition():
    grid, axes, theta, text = (2, 3, 4), (4, 6, 2), 1e4, 5
    cos, sin = ops.rope_tables(grid, axes, theta, text)
    assert cos.shape == sin.shape == (5 + 24, 6)
    assert cos.dtype == torch.float32
    assert torch.equal(cos[:text], torch.ones(5, 6))
    assert torch.equal(sin[:text], torch.zeros(5, 6))
    t, h, w = 1, 2, 3
    row = text + (t * 3 + h) * 4 + w
    angles = [
        p / theta ** (2 * i / d)
        for p, d in zip((t, h, w), axes, strict=True)
        for i in range(d // 2)
    ]
    expected = torch.tensor([[math.cos(a), math.sin(a)] for a in angles])
    torch.testing.assert_close(
        torch.stack((cos[row], sin[row]), -1), expected, rtol=1e-6, atol=1e-7
    )


def test_far_positions_are_exact():
    cos, _ = ops.rope_tables((1, 1, 5000), (2, 2, 2), 1e4, 0)
    assert cos[4999, 2].item() == torch.tensor(math.cos(4999.0)).item()


def test_cached_by_arguments():
    first = ops.rope_tables((1, 2, 3), (2, 2, 2), 1e4, 1)
    assert ops.rope_tables([1, 2, 3], [2, 2, 2], 10000, 1)[0] is first[0]
    assert ops.rope_tables((1, 2, 3), (2, 2, 2), 1e4, 2)[0] is not first[0]


def test_made_in_inference_mode_and_used_in_training():
    with torch.inference_mode():
        ops.rope_tables((3, 1, 1), (2, 2, 2), 123.0, 0)
    cos, _ = ops.rope_tables((3, 1, 1), (2, 2, 2), 123.0, 0)
    x = torch.ones(3, requires_grad=True)
    (x * cos).sum().backward()


def test_fake_tensors_do_not_stay():
    arguments = ((1, 1, 7), (2, 2, 2), 77.0, 0)
    with FakeTensorMode():
        ops.rope_tables(*arguments)
    assert type(ops.rope_tables(*arguments)[0]) is torch.Tensor


def test_compile():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def total(x):
        cos, sin = ops.rope_tables((2, 3, 4), (4, 6, 2), 1e4, 5)
        return x * cos.sum() + sin.sum()

    cos, sin = ops.rope_tables((2, 3, 4), (4, 6, 2), 1e4, 5)
    torch.testing.assert_close(total(torch.ones(1)), (cos.sum() + sin.sum())[None])


def test_odd_axis_is_refused():
    with pytest.raises(ValueError, match="even"):
        ops.rope_tables((1, 1, 1), (3, 2, 2), 1e4, 0)
