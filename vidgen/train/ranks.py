"""How a run's ranks are arranged: who shares a sample, who shares parameters, who shares heads."""

import math
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from vidgen.errors import UserError
from vidgen.models.mmdit import MMDiT, tensor_parallel
from vidgen.models.mmdit.config import MMDiTConfig
from vidgen.models.mmdit.model import Seams
from vidgen.models.mmdit.parallel import blocks, split_over
from vidgen.recipe.schema import ParallelConfig
from vidgen.runtime import parallel
from vidgen.runtime.parallel.arrangement import Arrangement, Shape
from vidgen.runtime.parallel.bandwidth import arrange

Tensors = dict[str, dict[str, Tensor]]


class Ranks:
    """The world of processes as one training run divides its work over them."""

    def __init__(
        self, config: ParallelConfig, world: parallel.World, model: MMDiTConfig, dtype: torch.dtype
    ) -> None:
        self.config, self.world, self._model = config, world, model
        together = config.context * config.tensor  # ranks that work on the same sample
        unit = math.lcm(together, config.copies * config.tensor)
        if world.world % unit:
            raise UserError(
                f"{world.world} rank(s) do not divide into parallel.context {config.context} x "
                f"tensor {config.tensor}, and copies {config.copies}: start a multiple of {unit} "
                "with torchrun, or set parallel.context=1"
            )
        tensor_parallel.check_divides(model, config.tensor)
        self.data_rank, self.data_world = world.rank // together, world.world // together
        self.same_sample: dist.ProcessGroup | None = None
        """The ranks that work on this rank's samples, for CPU tensors; None: no others."""
        if together > 1:
            timeout = timedelta(seconds=world.collective_timeout_s or world.timeout_s)
            self.same_sample, _ = dist.new_subgroups(together, backend="gloo", timeout=timeout)
        self.context: parallel.ContextGroup | None = None
        self.mesh: DeviceMesh | None = None
        self._arrangement: Arrangement | None = None
        self._itemsize = dtype.itemsize
        if world.world > 1:
            self.mesh = world.shard_mesh(config.copies, config.tensor)
        if config.context > 1:
            degrees = None if config.ulysses is None else [config.ulysses]
            self.context = world.context_group(config.context, config.tensor, degrees)
            self._arrangement = arrange(self.context, config.ulysses, world.device, dtype)

    @property
    def together(self) -> int:
        """Ranks that work on the same sample."""
        return self.world.world // self.data_world

    def describe(self) -> str:
        """One line: who shares what, and the rates that the arrangement of attention rests on."""
        c = self.config
        line = (
            f"ranks: data {self.data_world} x context {c.context} x tensor {c.tensor}; parameters "
            f"over {self.world.world // (c.copies * c.tensor)} ranks, ZeRO-{c.zero}"
        )
        rates = None if self._arrangement is None else self._arrangement.rates
        if rates is None:
            return line
        hops, exchanges = (
            ", ".join(f"{rate / 1e9:.3g} ({degree})" for degree, rate in sorted(by_degree.items()))
            for by_degree in (rates.hop, rates.exchange)
        )
        return (
            f"{line}; measured: attention {rates.flops / 1e12:.3g} TFLOP/s, GB/s by "
            f"neighbours that exchange heads: ring hops {hops}, exchanges {exchanges}"
        )

    def seams(self, seams: Seams) -> Seams:
        """With the tokens of a sample split over the context group, if there is one."""
        if self.context is None:
            return seams
        return replace(seams, split=split_over(self.context, self.degree, self.config.text))

    def degree(self, tokens: int) -> int:
        """How many neighbours exchange heads: as configured, or what the measured rates say."""
        assert self._arrangement is not None
        heads = self._model.num_heads // self.config.tensor
        return self._arrangement.degree(
            Shape(1, tokens, heads, self._model.head_dim, self._itemsize)
        )

    def shard(self, model: nn.Module, param_dtype: torch.dtype) -> None:
        """A generator block by block, what is trained beside it as a whole."""
        if self.mesh is None:
            return
        copies = self.config.copies > 1
        parallel.shard(
            model,
            blocks(model) if isinstance(model, MMDiT) else (),
            self.mesh["copies", "shard"] if copies else self.mesh["shard"],
            zero=self.config.zero,
            param_dtype=param_dtype,
        )

    def divide(self, model: MMDiT) -> None:
        """Tensor parallelism, if there is any; before `shard`."""
        if self.config.tensor > 1:
            assert self.mesh is not None
            tensor_parallel.divide(model, self.mesh["tensor"])

    def finish_gradients(self, named: dict[str, nn.Parameter]) -> None:
        """After the last backward of a step."""
        if self.config.tensor > 1:
            assert self.mesh is not None
            tensor_parallel.sum_norm_gradients(named, self.mesh["tensor"])

    def to_checkpoint_layout(self, tensors: Tensors) -> Tensors:
        """The tensors as they are stored: in the model's order, whatever divides it here."""
        if self.config.tensor == 1:
            return tensors
        ways = self.config.tensor
        return {
            group: tensor_parallel.in_model_order(members, self._model, ways)
            for group, members in tensors.items()
        }

    def from_checkpoint_layout(self, tensors: Tensors, loaded: Tensors) -> None:
        """Copy what was loaded into `to_checkpoint_layout`'s tensors back into these."""
        if self.config.tensor == 1:
            return
        for group, members in tensors.items():
            tensor_parallel.into_rank_order(members, loaded[group], self._model, self.config.tensor)
