"""What waits for the backward pass and where, by block: as a recipe says, or as the plan finds."""

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor, nn

from vidgen.errors import UserError
from vidgen.models.mmdit.model import Context, Stream, call_block
from vidgen.plan.blocks import keeping
from vidgen.plan.cost import REPORT, kept, standing
from vidgen.plan.workload import Workload
from vidgen.runtime.memory import Arena, Lane
from vidgen.runtime.memory.block_memory import BlockMemory, run_block
from vidgen.runtime.memory.offload import Offloader
from vidgen.runtime.observe.gpus import GPUS, Gpu, of_device


def gpu_at_hand(device: torch.device) -> Gpu:
    """Its data sheet's rates, with the memory that it has."""
    if device.type != "cuda":
        raise UserError(
            f"recompute is auto, which needs a GPU's figures, and this runs on {device.type}: say "
            'what to recompute, such as "recompute={dual: 0, single: 0}"'
        )
    name = torch.cuda.get_device_name(device)
    known = of_device(name)
    if known is None:
        raise UserError(
            f"recompute is auto, and there are no figures for the GPU {name!r}, only for "
            f'{", ".join(GPUS)}: say what to recompute: "recompute={{dual: 19, single: 38}}"'
        )
    return replace(known, memory=torch.cuda.get_device_properties(device).total_memory)


class BlockActivations:
    """Runs blocks as a workload says; holds the pinned memory they need, if any."""

    def __init__(self, workload: Workload, device: torch.device, gpus: int) -> None:
        """`gpus` share the optimizer's states: where the choice is open, they leave it room."""
        self._device, self._workload, self._gpus = device, workload, gpus
        self.offloader: Offloader | None = None
        self.recomputed_share = 0.0  # of the blocks of the latest forward pass
        self._configured = workload.blocks
        self._found: dict[tuple[int, int], tuple[BlockMemory, ...]] = {}
        if self._configured is None:
            self._gpu = gpu_at_hand(device)
            self._room = self._gpu.memory - standing(workload, self._gpu, gpus).total
            return
        if workload.compiled and BlockMemory.OFFLOAD_PRODUCTS in self._configured:
            raise UserError(
                "offload.what is products, which are not to be seen in compiled blocks "
                "(train.compile is true); set train.compile=false or offload.what=activations"
            )
        self._provide(self._configured)

    def run_block(self, index: int, block: nn.Module, stream: Stream, context: Context) -> Stream:
        def call(*tensors: Tensor) -> Stream:
            return call_block(index, block, tensors, context)

        if not torch.is_grad_enabled():
            return call(*stream)
        policies = self._configured or self._chosen(stream)
        if index == 0:
            self.recomputed_share = sum(how.recomputes for how in policies) / len(policies)
        result: Stream = run_block(policies[index], self.offloader, block, call, *stream)
        return result

    def _chosen(self, stream: Stream) -> tuple[BlockMemory, ...]:
        """The plan's choice for a batch of this size, made when it first comes."""
        batch, tokens = stream[0].shape[0], sum(x.shape[1] for x in stream)
        found = self._found.get((batch, tokens))
        if found is None:
            workload, gpu = self._workload, self._gpu
            rate = gpu.flops * REPORT.compute
            attended = tokens * workload.context
            choice = keeping(workload, batch * tokens, attended, gpu, rate, self._room)
            found = self._found[batch, tokens] = choice.blocks
            self._provide(found)
        return found

    def _provide(self, policies: tuple[BlockMemory, ...]) -> None:
        if self.offloader is not None or not any(policy.offloads for policy in policies):
            return
        arena = Arena(int(self._workload.host_bytes), device=self._device.index, name="activations")
        out = Lane(self._device, name="activations out")
        back = Lane(self._device, name="activations back")
        self.offloader = Offloader(arena, out, back)

    def choices(self) -> list[str]:
        """A line for each bucket of the recipe, where the choice is left open; NothingFits
        where nothing does."""
        if self._configured is not None:
            return []
        lines = []
        for bucket in self._workload.buckets:
            choice = kept(self._workload, bucket, self._gpu, self._gpus, REPORT)
            ways = ", ".join(f"{n} {how.value}" for how, n in Counter(choice.blocks).items())
            lines.append(f"{bucket.name}, batch {bucket.batch}: blocks {ways}")
        return lines

    def close(self) -> None:
        if self.offloader is not None:
            self.offloader.close()
