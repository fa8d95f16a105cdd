"""Packed rows are permuted to rank order and back; indivisible sizes raise an error."""

from dataclasses import replace

import pytest
import torch

from vidgen.errors import UserError
from vidgen.models.mmdit import PRESETS, MMDiT
from vidgen.models.mmdit.tensor_parallel import check_divides, packed_order

CONFIG = replace(PRESETS["tiny"], num_heads=4, axes_dim=(4, 6, 6))


@pytest.mark.parametrize("ways", [1, 2, 4])
def test_a_rank_gets_its_heads_of_every_part(ways: int) -> None:
    width, hidden = CONFIG.hidden_size, CONFIG.mlp_hidden
    found = packed_order(CONFIG, "single_blocks.0.linear1.weight", ways)
    assert found is not None
    dim, order = found
    assert dim == 0
    for rank, rows in enumerate(order.chunk(ways)):
        q, k, v, mlp = rows.split([width // ways] * 3 + [hidden // ways])
        for number, part in enumerate((q, k, v)):
            first = number * width + rank * width // ways
            assert part.tolist() == list(range(first, first + width // ways))
        first = 3 * width + rank * hidden // ways
        assert mlp.tolist() == list(range(first, first + hidden // ways))


def test_only_packed_parameters_are_moved_and_each_row_once() -> None:
    with torch.device("meta"):
        model = MMDiT(CONFIG)
    moved = set()
    for name, parameter in model.named_parameters():
        if (found := packed_order(CONFIG, name, 2)) is not None:
            dim, order = found
            assert sorted(order.tolist()) == list(range(parameter.shape[dim]))
            moved.add(name.split(".", 2)[2])
    assert moved == {
        *("img_attn.qkv.weight", "img_attn.qkv.bias", "txt_attn.qkv.weight", "txt_attn.qkv.bias"),
        *("linear1.weight", "linear1.bias", "linear2.weight"),
    }


@pytest.mark.parametrize("ways", [3, 8])
def test_heads_that_do_not_divide_are_refused(ways: int) -> None:
    with pytest.raises(UserError, match=f"parallel.tensor is {ways}: it must divide"):
        check_divides(CONFIG, ways)
