import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from vidgen.errors import UserError
from vidgen.plan.blocks import keeping, working_bytes
from vidgen.plan.cost import REPORT, standing
from vidgen.plan.workload import workload_of
from vidgen.runtime.memory.block_memory import BlockMemory
from vidgen.runtime.observe.gpus import GPUS
from vidgen.train import block_memory
from vidgen.train.block_memory import BlockActivations, gpu_at_hand
from vidgen.train.trainer import Trainer

KEEP, AGAIN = BlockMemory.KEEP, BlockMemory.RECOMPUTE


def test_the_first_blocks_of_each_kind_run_again_and_the_next_ones_are_sent(tiny: Any) -> None:
    def policies(*overrides: str) -> list[BlockMemory]:
        recipe = tiny("model.depth=3", "model.depth_single_blocks=4", *overrides)
        return list(recipe.block_memory())

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
        BlockActivations(workload_of(recipe), torch.device("cpu"), 1)


def test_training_takes_the_plans_choice(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device with too little memory to keep everything: the same bits, other blocks."""
    kept = Trainer(tiny("train.steps=4", run="kept"))
    kept.run()
    recipe = tiny("recompute=auto", "train.steps=4", "offload.host_gb=0.01", run="auto")
    workload = workload_of(recipe)
    tokens = 4 * (8 + 3 * 2 * 2)  # those of 9 frames and a batch of 4, the most
    room = working_bytes(workload, tokens) + 1.7 * 32 * 2 * tokens * 15  # of two blocks' 21 + 18
    small = replace(GPUS["h200"], memory=0.0)
    # The reserve is a share of the memory.
    fixed = standing(workload, small, 1).total
    small = replace(small, memory=(fixed + room) / (1 - 0.06))
    monkeypatch.setattr(block_memory, "gpu_at_hand", lambda device: small)
    trainer = Trainer(recipe)
    expected = keeping(workload, tokens, tokens / 4, small, small.flops * REPORT.compute, room)
    assert set(expected.blocks) != {KEEP}
    trainer.run()
    assert all(torch.equal(trainer.named[name], p) for name, p in kept.named.items())
    assert expected.blocks in trainer.activations._found.values()
    lines = (trainer.run_dir / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["hfu"] > 0 for line in lines)
    assert any("x 9, batch 4: blocks" in line for line in trainer.activations.choices())


def test_auto_needs_figures_and_no_counts(tiny: Any) -> None:
    with pytest.raises(UserError, match="recompute is auto, which needs a GPU's figures"):
        gpu_at_hand(torch.device("cpu"))
    with pytest.raises(UserError, match=r"leave recompute\.dual, recompute\.single"):
        tiny("recompute=auto", "offload.inputs=true")
    with pytest.raises(UserError, match="there is no preset 'autom'"):
        tiny("recompute=autom")
