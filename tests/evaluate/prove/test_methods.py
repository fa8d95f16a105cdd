"""Methods by name, and damage that leaves the model as it was."""

import pytest
import torch

from vidgen.errors import UserError
from vidgen.evaluate.prove.methods import LADDER, applied, parse, round_weights
from vidgen.models.mmdit import PRESETS, MMDiT
from vidgen.sample.hooks import NO_HOOKS, ModelPass


class Stub:
    """What a method touches of a pipeline."""

    def __init__(self):
        self.model = MMDiT(PRESETS["tiny"])
        self.model.init_weights(torch.Generator().manual_seed(0))
        self.hooks = NO_HOOKS


def current(evaluation=0):
    return ModelPass(0, evaluation, 0, 20, 0.5, "text", (4, 6, 6), 32, {})


def test_names_become_methods():
    method = parse("heun:5+guidance:7+bits:4")
    assert (method.solver, method.steps, method.guidance, method.bits) == ("heun", 5, 7.0, 4)
    assert parse("captions:shuffled").captions == "shuffled"
    assert len({parse(name) for name in LADDER}) == len(LADDER)


@pytest.mark.parametrize("wrong", ["euler", "euler:0", "bits:x", "captions:own2", "magic:3", ""])
def test_a_wrong_name_is_refused_with_the_right_ones(wrong):
    with pytest.raises(UserError, match="euler:STEPS"):
        parse(wrong)


def test_rounding_leaves_few_levels_and_is_undone():
    stub = Stub()
    before = {name: p.clone() for name, p in stub.model.named_parameters()}
    with applied(parse("bits:3"), stub):
        weight = stub.model.single_blocks[0].linear1.weight
        assert len(weight[0].unique()) <= 7
        assert not torch.equal(weight, before["single_blocks.0.linear1.weight"])
    for name, p in stub.model.named_parameters():
        assert torch.equal(p, before[name]), name
    assert stub.hooks == NO_HOOKS


def test_more_bits_are_closer():
    errors = []
    for bits in (8, 4, 3):
        stub = Stub()
        weight = stub.model.img_in.weight.detach().clone()
        round_weights(stub.model, bits)
        errors.append(float((stub.model.img_in.weight.detach() - weight).abs().mean()))
    assert errors == sorted(errors)


def test_a_dropped_block_hands_its_input_on():
    stub = Stub()
    pair = (torch.zeros(1, 32, 8), torch.ones(1, 144, 8))
    with applied(parse("drop:2"), stub):
        assert stub.hooks.inject(current(), 2, pair) is pair
        assert stub.hooks.inject(current(), 1, pair) is None


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_masks_leave_every_query_a_key_and_about_the_rest_out(share):
    stub = Stub()
    with applied(parse(f"mask:{share}"), stub):
        blocks = [stub.hooks.mask(current(n), 1).blocks for n in range(200)]
        again = stub.hooks.mask(current(7), 1).blocks
    assert all(b.any(dim=3).all() for b in blocks)
    assert torch.equal(again, blocks[7])
    kept = torch.stack(blocks).float().mean()
    assert abs(float(kept) - max(1 - share, 1 / 3)) < 0.12
