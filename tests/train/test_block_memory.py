from typing import Any

import pytest
import torch

from vidgen.errors import UserError
from vidgen.runtime.memory.policy import BlockMemory
from vidgen.train.block_memory import BlockActivations, block_policies
from vidgen.train.trainer import Trainer

KEEP, AGAIN = BlockMemory.KEEP, BlockMemory.RECOMPUTE


def test_the_first_blocks_of_each_kind_run_again_and_the_next_ones_are_sent(tiny: Any) -> None:
    def policies(*overrides: str) -> list[BlockMemory]:
        return block_policies(tiny("model.depth=3", "model.depth_single_blocks=4", *overrides))

    assert policies() == [KEEP] * 7
    assert policies("recompute.dual=1", "recompute.single=9") == [AGAIN, KEEP, KEEP] + [AGAIN] * 4
    assert policies("recompute.dual=2", "offload.inputs=true") == [
        *[BlockMemory.OFFLOAD_INPUTS] * 2,
        *[KEEP] * 5,
    ]
    assert policies("recompute.single=1", "offload.single=2", "offload.dual=3") == [
        *[BlockMemory.OFFLOAD] * 3,
        *(AGAIN, BlockMemory.OFFLOAD, BlockMemory.OFFLOAD, KEEP),
    ]
    assert policies("offload.dual=1", "offload.what=products")[0] is BlockMemory.OFFLOAD_PRODUCTS


@pytest.mark.parametrize(
    "policy",
    [
        ["recompute.dual=1", "recompute.single=1", "offload.inputs=true"],
        ["offload.dual=1", "offload.single=1"],
        ["offload.dual=1", "offload.single=1", "offload.what=products"],
    ],
)
def test_training_is_the_same_bit_for_bit(tiny: Any, policy: list[str]) -> None:
    def train(run: str, *overrides: str) -> dict[str, torch.Tensor]:
        trainer = Trainer(tiny("offload.host_gb=0.01", "train.steps=2", *overrides, run=run))
        trainer.run()
        offloader = trainer.activations.offloader
        assert (offloader is not None) == (run == "sent")
        return {name: p.detach() for name, p in trainer.named.items()}

    expected, found = train("kept"), train("sent", *policy)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_products_of_compiled_blocks_are_refused(tiny: Any) -> None:
    recipe = tiny("train.compile=true", "offload.dual=1", "offload.what=products")
    with pytest.raises(UserError, match=r"set train\.compile=false or offload\.what=activations"):
        BlockActivations(recipe, torch.device("cpu"))
