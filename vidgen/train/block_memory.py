"""What a recipe says of its blocks' activations: keep, compute again, or send to host memory."""

import torch
from torch import Tensor, nn

from vidgen.errors import UserError
from vidgen.models.mmdit.model import Context, Stream, call_block
from vidgen.runtime.memory import Arena, Lane
from vidgen.runtime.memory.offload import Offloader
from vidgen.runtime.memory.policy import BlockMemory, run_block
from vidgen.train.config import Recipe

_SENT = {"activations": BlockMemory.OFFLOAD, "products": BlockMemory.OFFLOAD_PRODUCTS}


def block_policies(recipe: Recipe) -> list[BlockMemory]:
    """For each block in the order they run. Of each kind the first are computed again, the next
    ones sent away, the rest kept."""
    again, away = recipe.recompute, recipe.offload
    first = BlockMemory.OFFLOAD_INPUTS if away.inputs else BlockMemory.RECOMPUTE
    policies = []
    for count, computed, sent in (
        (recipe.model.depth, again.dual, away.dual),
        (recipe.model.depth_single_blocks, again.single, away.single),
    ):
        kind = [first] * computed + [_SENT[away.what]] * sent + [BlockMemory.KEEP] * count
        policies += kind[:count]
    return policies


class BlockActivations:
    """Runs blocks as the recipe says; holds the pinned memory they need, if any."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.policies = block_policies(recipe)
        self.offloader: Offloader | None = None
        if recipe.train.compile and BlockMemory.OFFLOAD_PRODUCTS in self.policies:
            raise UserError(
                "offload.what is products, which are not to be seen in compiled blocks "
                "(train.compile is true); set train.compile=false or offload.what=activations"
            )
        if any(policy.offloads for policy in self.policies):
            arena = Arena(
                int(recipe.offload.host_gb * 1e9), device=device.index, name="activations"
            )
            out, back = Lane(device, name="activations out"), Lane(device, name="activations back")
            self.offloader = Offloader(arena, out, back)

    def run_block(self, index: int, block: nn.Module, stream: Stream, context: Context) -> Stream:
        def call(*tensors: Tensor) -> Stream:
            return call_block(index, block, tensors, context)

        result: Stream = run_block(self.policies[index], self.offloader, block, call, *stream)
        return result

    def close(self) -> None:
        if self.offloader is not None:
            self.offloader.close()
