import pytest
import torch

from vidgen.runtime import ops

SHAPES = [(1, 9, 2, 8), (2, 9, 3, 10), (3, 1, 1, 4)]


def eager(joint, text):
    wide = joint.flatten(2)
    return wide[:, :text], wide[:, text:]


@pytest.mark.parametrize("text", [0, 1, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_a_split_with_a_gradient(laws, shape, text, dtype):
    joint = torch.randn(shape).to(dtype).requires_grad_()
    text = min(text, shape[1])
    found, expected = ops.split_streams(joint, text), eager(joint, text)
    grads = [torch.randn_like(part) for part in expected]
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two)
    of_found = torch.autograd.grad(found, joint, grads)[0]
    assert torch.equal(of_found, torch.autograd.grad(expected, joint, grads)[0])


def test_parts_are_contiguous(kernel_laws):
    for batch in (1, 2):
        joint = torch.randn(batch, 3, 7, 8).transpose(1, 2)
        for part in ops.split_streams(joint, 3):
            assert part.is_contiguous()


def test_one_stream_without_a_gradient(laws):
    joint = torch.randn(2, 5, 2, 4, requires_grad=True)
    ops.split_streams(joint, 2)[0].sum().backward()
    assert torch.equal(joint.grad[:, :2], torch.ones(2, 2, 2, 4))
    assert torch.equal(joint.grad[:, 2:], torch.zeros(2, 3, 2, 4))


@pytest.mark.parametrize("batch", [1, 2])
def test_compile(laws, batch):
    joint = torch.randn(batch, 5, 2, 4, requires_grad=True)
    laws.compiles_without_a_break(lambda joint: ops.split_streams(joint, 2), [joint])


def test_opcheck(kernel_laws):
    joint = torch.randn(2, 5, 2, 4)
    torch.library.opcheck(torch.ops.vidgen.split_streams.default, (joint, 2))
    parts = torch.randn(2, 2, 8), torch.randn(2, 3, 8)
    torch.library.opcheck(torch.ops.vidgen.join_streams.default, (*parts, 2))
