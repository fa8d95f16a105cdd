"""Parts of torch's backends that can be tested without their kernels."""

import pytest
import torch

from vidgen.runtime.attention import BlockMask
from vidgen.runtime.attention.torch_backends import _flex_mask


@pytest.mark.parametrize("lengths", [None, [150, 64, 3]])
@pytest.mark.parametrize("blocked", [False, True])
def test_flex_sees_the_same_keys(blocked: bool, lengths: list[int] | None) -> None:
    if not blocked and lengths is None:
        pytest.skip("no mask")
    queries, keys = 300, 150
    blocks = torch.rand(1, 2, 3, 3) < 0.5 if blocked else None
    mask = BlockMask(blocks, None if lengths is None else torch.tensor(lengths))
    flex = _flex_mask(mask, 3, queries, keys)
    expected = mask.dense(queries, keys).expand(3, 2, queries, keys)

    seen = torch.zeros(3, 2, 3 * 128, 3 * 64, dtype=torch.bool)
    key = torch.arange(seen.shape[-1])
    samples, heads = flex.kv_num_blocks.shape[:2]
    for sample in range(3):
        for head in range(2):
            at = (min(sample, samples - 1), min(head, heads - 1))
            for counts, order, cut in (
                (flex.kv_num_blocks, flex.kv_indices, True),
                (flex.full_kv_num_blocks, flex.full_kv_indices, False),
            ):
                for row in range(3):
                    for column in order[at][row, : int(counts[at][row])].tolist():
                        here = slice(column * 64, column * 64 + 64)
                        exists = flex.mask_mod(torch.tensor(sample), head, 0, key[here])
                        assert cut or bool(exists.all())
                        seen[sample, head, row * 128 : row * 128 + 128, here] = exists
    assert torch.equal(seen[:, :, :queries, :keys], expected)
