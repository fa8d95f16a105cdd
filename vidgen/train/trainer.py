"""Training a generator: builds what a step needs; the step itself is `vidgen/train/step.py`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from vidgen.data import open_loader
from vidgen.data.loader import Batch, Loader
from vidgen.models.build import check_parts_fit
from vidgen.models.geometry import Geometry
from vidgen.models.mmdit import MMDiT, Seams
from vidgen.models.mmdit.flops import parameters
from vidgen.models.mmdit.parallel import blocks
from vidgen.plan.workload import workload_of
from vidgen.recipe.schema import Recipe
from vidgen.runtime.attention import agree
from vidgen.train.batch_encoder import BatchEncoder
from vidgen.train.block_memory import BlockActivations
from vidgen.train.encoders import build_encoders
from vidgen.train.initialization import load_initial
from vidgen.train.loop import Tensors, TrainingLoop
from vidgen.train.objectives.alignment import Alignment
from vidgen.train.ranks import Ranks
from vidgen.train.report.log import RunLog
from vidgen.train.step import GeneratorStep
from vidgen.train.step_result import StepResult
from vidgen.train.validate import Validator


class Trainer(TrainingLoop[Recipe]):
    FIXED_ON_RESUME = ("model", "autoencoder", "text", "flow", "alignment")
    LOSS_BY_BIN = "loss_by_t"
    model: MMDiT

    # What a step does ----------------------------------------------------------------------------

    def forward_backward(self, batch: Batch) -> StepResult:
        return self.generator_step.forward_backward(batch)

    def finish_gradients(self) -> None:
        self.ranks.finish_gradients(self.named)
        if self.alignment is not None:
            self.alignment.finish_gradients()

    def update_others(self, lr: float) -> None:
        if self.alignment is not None:
            self.alignment.update(lr)

    def autocast(self) -> AbstractContextManager[Any]:
        # Sharded parameters are gathered in the compute dtype already.
        return nullcontext() if self.world.world > 1 else super().autocast()

    def validate(self, log: RunLog) -> None:
        with self.autocast():
            found = self.validator(self.step, self.generator_step)
        self.validator.show(self.step, found, log)

    # Building ------------------------------------------------------------------------------------

    def open_data(self) -> Loader:
        recipe = self.recipe
        if self.world.world > 1:
            agree()  # every rank uses the attention backends that rank 0 measured as fastest
        self.ranks = Ranks(recipe.parallel, self.world, recipe.model, self.dtype)
        self.encoders = build_encoders(recipe, self.device, self.dtype)
        autoencoder = self.encoders.autoencoder
        check_parts_fit(recipe.model, autoencoder, self.encoders.text)
        self.batch_encoder = BatchEncoder(
            self.encoders,
            recipe.conditions,
            seed=recipe.seed,
            device=self.device,
            dtype=self.dtype,
            group=self.ranks.context,
        )
        return open_loader(
            recipe.data,
            seed=recipe.seed,
            rank=self.ranks.data_rank,
            world=self.ranks.data_world,
            device=self.device,
            accumulate=recipe.train.accumulate,
            geometry=Geometry.of(autoencoder, recipe.model.patch_size),
            codec=self.encoders.codec,
            group=self.ranks.same_sample,
        )

    def build_model(self, resuming: bool) -> MMDiT:
        recipe = self.recipe
        self.activations = BlockActivations(workload_of(recipe), self.device, self.world.world)
        self.seams = self.ranks.seams(Seams(run_block=self.activations.run_block))
        self.alignment = self._build_alignment(resuming)
        with torch.device("meta"):
            model = MMDiT(recipe.model)
        if recipe.train.compile:
            for block in blocks(model):
                block.compile()
        if recipe.parallel.tensor == 1:
            # Sharded before it has memory: no rank ever holds the whole.
            self.ranks.shard(model, self.dtype)
            model.to_empty(device=self.device)
            self._load_or_init(model, resuming)
        else:
            model.to_empty(device=self.device)
            self._load_or_init(model, resuming)
            self.ranks.divide(model)
            self.ranks.shard(model, self.dtype)
        self.generator_step = GeneratorStep(
            recipe,
            self.batch_encoder,
            model,
            self.seams,
            self.activations,
            self.alignment,
            autocast=self.autocast,
            phase=self.phase,
        )
        self.validator = Validator(recipe, self.ranks, self.encoders, self.dtype)
        return model

    def _build_alignment(self, resuming: bool) -> Alignment | None:
        recipe = self.recipe
        if recipe.alignment.weight == 0:
            return None
        alignment = Alignment(
            recipe.alignment,
            recipe.optim,
            recipe.model,
            self.encoders.autoencoder,
            self.ranks,
            self.seams,
            seed=recipe.seed,
            device=self.device,
            dtype=self.dtype,
        )
        self.seams = alignment.seams
        if recipe.train.init_from and not resuming:
            alignment.load_projection(recipe.train.init_from)
        return alignment

    def _load_or_init(self, model: MMDiT, resuming: bool) -> None:
        recipe, first = self.recipe, self.recipe.train
        if first.init_from and not resuming:
            load_initial(model, first.init_from, first.reinitialise, recipe.seed)
        else:
            model.init_weights(torch.Generator().manual_seed(recipe.seed))

    # What the ranks share ------------------------------------------------------------------------

    @property
    def data_world(self) -> int:
        return self.ranks.data_world

    @property
    def parameter_count(self) -> int:
        return parameters(self.recipe.model)  # whole, whatever divides the model here

    def tensors(self) -> Tensors:
        beside = {} if self.alignment is None else self.alignment.tensors()
        return {**super().tensors(), **beside}

    def to_checkpoint_layout(self, tensors: Tensors) -> Tensors:
        return self.ranks.to_checkpoint_layout(tensors)

    def from_checkpoint_layout(self, tensors: Tensors, loaded: Tensors) -> None:
        self.ranks.from_checkpoint_layout(tensors, loaded)

    def log_start(self, log: RunLog) -> None:
        super().log_start(log)
        if self.world.world > 1:
            log.line(self.ranks.describe())
        if self.alignment is not None:
            log.line(self.alignment.describe())
        for line in self.activations.choices():
            log.line(line)

    def close(self) -> None:
        self.activations.close()
        super().close()
