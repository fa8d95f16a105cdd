import pytest
import torch

from vidgen.runtime import ops


@pytest.mark.parametrize("width", [1, 16, 33])
@pytest.mark.parametrize("shape", [(2, 7, 3), (1, 130, 2), (2, 0, 3)], ids=str)
def test_a_slice_into_a_part_of_another(laws, shape, width, dtype):
    """The values' heads out of a packed projection, into the last tokens of a joint buffer."""
    batch, length, heads = shape
    packed = torch.randn(batch, length, 3, heads, width).to(dtype)
    joint = torch.full((batch, length + 5, heads, width), 7.0, dtype=dtype)
    ops.copy_rows(packed[:, :, 2], joint[:, 5:])
    assert torch.equal(joint[:, 5:], packed[:, :, 2])
    assert (joint[:, :5] == 7).all()


def test_rows_that_are_not_contiguous(laws):
    x = torch.randn(2, 3, 4, 5).transpose(1, 3)
    out = torch.empty(x.shape)
    ops.copy_rows(x, out)
    assert torch.equal(out, x)


def test_every_bit_is_copied(laws, dtype):
    x = torch.randint(-(2**15), 2**15, (1, 9, 2, 64), dtype=torch.int16)
    x = x.view(dtype) if dtype.itemsize == 2 else x.repeat_interleave(2, -1).view(dtype)
    out = torch.empty_like(x)
    ops.copy_rows(x, out)
    assert torch.equal(out.view(torch.int16), x.view(torch.int16))


def test_shapes_and_dtypes_that_do_not_fit_are_refused():
    x = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="expected both"):
        ops.copy_rows(x, torch.empty(1, 2, 3, 5))
    with pytest.raises(ValueError, match=r"torch.float32 .* torch.bfloat16"):
        ops.copy_rows(x, torch.empty(1, 2, 3, 4, dtype=torch.bfloat16))


def test_opcheck(kernel_laws, dtype):
    x, out = (torch.randn(2, 3, 4, 8).to(dtype) for _ in range(2))
    torch.library.opcheck(torch.ops.vidgen.copy_rows, (x, out[:, :, :4]))
