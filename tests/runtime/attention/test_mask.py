"""Which keys a query may attend to under a mask."""

import pytest
import torch

from vidgen.runtime.attention import BlockMask, attention


def test_blocks_are_128_queries_by_64_keys() -> None:
    blocks = torch.tensor([[True, False, False], [False, True, True]])[None, None]
    dense = BlockMask(blocks).dense(200, 150)
    assert dense.shape == (1, 1, 200, 150)
    for query, key in [(0, 0), (127, 63), (128, 64), (199, 149)]:
        assert dense[0, 0, query, key]
    for query, key in [(0, 64), (127, 149), (128, 0), (199, 63)]:
        assert not dense[0, 0, query, key]


def test_padding_hides_keys_of_each_sample() -> None:
    mask = BlockMask.padding(torch.tensor([0, 2, 9]))
    assert mask.kinds == {"length"}
    assert mask.dense(4, 3).expand(3, 1, 4, 3).sum((1, 2, 3)).tolist() == [0, 8, 12]
    q, k = torch.randn(3, 4, 2, 8), torch.randn(3, 3, 2, 8)
    out = attention(q, k, k, mask=mask)
    torch.testing.assert_close(out[1], attention(q[1:2], k[1:2, :2], k[1:2, :2])[0])
    torch.testing.assert_close(out[2], attention(q[2:], k[2:], k[2:])[0])


def test_a_mask_of_nothing_is_no_mask() -> None:
    mask = BlockMask()
    assert not mask.kinds
    assert mask.dense(2, 3).all()
    q = torch.randn(1, 5, 1, 8)
    assert torch.equal(attention(q, q, q, mask=mask), attention(q, q, q))


def test_text_stays_dense() -> None:
    none = torch.zeros(1, 2, 3, 5, dtype=torch.bool)
    mask = BlockMask.joint(none, text_length=70)
    assert not none.any()  # the policy's own blocks are not written to
    dense = mask.dense(300, 300)
    assert dense[..., :70, :].all()
    assert dense[..., :70].all()
    assert not dense[..., 128:, 128:].any()
    assert not BlockMask.joint(none, text_length=0).dense(300, 300).any()


@pytest.mark.parametrize(
    ("blocks", "lengths", "message"),
    [
        (torch.ones(1, 1, 1, 3, dtype=torch.bool), None, r"expected bool \(2 or 1, 4 or 1, 2, 3\)"),
        (torch.ones(3, 1, 2, 3, dtype=torch.bool), None, "mask blocks"),
        (torch.ones(2, 2, 2, 3, dtype=torch.bool), None, "mask blocks"),
        (torch.ones(2, 3, dtype=torch.bool), None, "mask blocks"),
        (torch.ones(1, 1, 2, 3, dtype=torch.int64), None, "mask blocks torch.int64"),
        (None, torch.tensor([4]), r"key lengths \(1,\): expected \(2,\)"),
    ],
)
def test_masks_that_do_not_fit(
    blocks: torch.Tensor | None, lengths: torch.Tensor | None, message: str
) -> None:
    q, k = torch.randn(2, 129, 4, 8), torch.randn(2, 129, 4, 8)
    with pytest.raises(ValueError, match=message):
        attention(q, k, k, mask=BlockMask(blocks, lengths))
