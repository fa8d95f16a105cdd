"""Training a generator: from clips to latents, noise added to them, and the velocity back."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from vidgen.data import open_loader
from vidgen.data.loader import Batch, Loader
from vidgen.diffusion import flow
from vidgen.models.build import check_parts_fit
from vidgen.models.mmdit import MMDiT, Seams
from vidgen.models.mmdit.flops import flops, parameters
from vidgen.models.mmdit.parallel import blocks
from vidgen.plan.workload import workload_of
from vidgen.recipe.schema import Recipe
from vidgen.runtime.attention import agree
from vidgen.train.block_memory import BlockActivations
from vidgen.train.encoders import build_encoders
from vidgen.train.examples import Example, ExampleMaker
from vidgen.train.initialization import first_weights, load_initial
from vidgen.train.loop import Tensors, TrainingLoop
from vidgen.train.objectives.alignment import Alignment
from vidgen.train.ranks import Ranks
from vidgen.train.report.log import RunLog
from vidgen.train.step_result import Learned
from vidgen.train.validate import Validator


class Trainer(TrainingLoop[Recipe]):
    SAME = ("model", "autoencoder", "text", "flow", "alignment")
    SCORE = "loss_by_t"
    model: MMDiT

    # From a batch to its gradients ---------------------------------------------------------------

    def learn(self, batch: Batch) -> Learned:
        with self.phase("encode"):
            example = self.make_example(batch)
        with self.phase("forward"):
            loss_B = self.sample_losses(example)
        loss = loss_B.mean()
        figures: dict[str, Tensor] = {}
        if self.alignment is not None:
            with self.phase("alignment"), self.autocast():
                apart = self.alignment.losses(batch.video_BTHWC, example.grid).mean()
            loss = loss + self.alignment.weight * apart
            figures["alignment"] = -apart.detach()
        with self.phase("backward"):
            (loss / self.recipe.train.accumulate).backward()
        return self._learned(batch, example, loss_B.detach(), figures)

    def sample_losses(self, example: Example) -> Tensor:
        """The loss of each sample, (B,)."""
        with self.autocast():
            predicted = self.model(
                example.noisy_BVD,
                grid=example.grid,
                txt=example.text.tokens_BLD,
                vec=example.text.pooled_BD,
                t=example.t_B,
                cond=example.cond_BVD,
                guidance=example.guidance_B,
                seams=self.seams,
            )
        return flow.loss_per_sample(predicted, example.target_BVD, example.weight_BV)

    def _learned(
        self, batch: Batch, example: Example, loss_B: Tensor, figures: dict[str, Tensor]
    ) -> Learned:
        one, videos = flops(self.recipe.model, example.grid, self.text_length), len(batch.keys)
        again = self.activations.recomputed_share
        return Learned(
            batch,
            bin_B=example.t_B,
            loss_B=loss_B,
            tokens=videos * math.prod(example.grid),
            model_flops=videos * one.training,
            executed_flops=videos * round(one.training + again * one.forward),
            figures=figures,
        )

    def finish_gradients(self) -> None:
        self.ranks.finish_gradients(self.named)
        if self.alignment is not None:
            self.alignment.finish_gradients()

    def update(self) -> None:
        super().update()
        if self.alignment is not None:
            self.alignment.update(float(self.optimizer.param_groups[0]["lr"]))

    def autocast(self) -> AbstractContextManager[Any]:
        # Sharded parameters are gathered in the compute dtype already.
        return nullcontext() if self.world.world > 1 else super().autocast()

    def validate(self, log: RunLog) -> None:
        with self.autocast():
            found = self.validator(self.step, self.model, self.sample_losses)
        self.validator.show(self.step, found, log)

    # Building ------------------------------------------------------------------------------------

    def open_data(self) -> Loader:
        recipe = self.recipe
        if self.world.world > 1:
            agree()  # on attention's backends, as rank 0 has measured them
        self.ranks = Ranks(recipe.parallel, self.world, recipe.model, self.dtype)
        autoencoder, text, codec = build_encoders(recipe, self.device, self.dtype)
        self.autoencoder = autoencoder
        check_parts_fit(recipe.model, autoencoder, text)
        self.text_length = text.length
        self.make_example = ExampleMaker(
            recipe.model,
            autoencoder,
            text,
            recipe.flow,
            recipe.conditions,
            seed=recipe.seed,
            device=self.device,
            dtype=self.dtype,
            group=self.ranks.context,
        )
        self.validator = Validator(
            recipe, self.world, self.ranks, self.dtype, autoencoder, text, self.make_example
        )
        return open_loader(
            recipe.data,
            seed=recipe.seed,
            rank=self.ranks.data_rank,
            world=self.ranks.data_world,
            device=self.device,
            accumulate=recipe.train.accumulate,
            temporal_step=autoencoder.compression[0],
            causal=autoencoder.causal,
            spatial_multiple=autoencoder.compression[1] * recipe.model.patch_size,
            codec=codec,
        )

    def build_model(self, resuming: bool) -> MMDiT:
        recipe = self.recipe
        self.activations = BlockActivations(workload_of(recipe), self.device, self.world.world)
        self.seams = self.ranks.seams(Seams(run_block=self.activations.run_block))
        self.alignment = self._align(resuming)
        with torch.device("meta"):
            model = MMDiT(recipe.model)
        if recipe.train.compile:
            for block in blocks(model):
                block.compile()
        if recipe.parallel.tensor == 1:
            # Sharded before it has memory: no rank ever holds the whole.
            self.ranks.shard(model, self.dtype)
            model.to_empty(device=self.device)
            self._fill(model, resuming)
        else:
            model.to_empty(device=self.device)
            self._fill(model, resuming)
            self.ranks.divide(model)
            self.ranks.shard(model, self.dtype)
        return model

    def _align(self, resuming: bool) -> Alignment | None:
        recipe = self.recipe
        if recipe.alignment.weight == 0:
            return None
        alignment = Alignment(
            recipe.alignment,
            recipe.optim,
            recipe.model,
            self.autoencoder,
            self.ranks,
            self.seams,
            seed=recipe.seed,
            device=self.device,
            dtype=self.dtype,
        )
        self.seams = alignment.seams
        if recipe.train.init_from and not resuming:
            alignment.begin_with(first_weights(recipe.train.init_from))
        return alignment

    def _fill(self, model: MMDiT, resuming: bool) -> None:
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

    def stored(self, tensors: Tensors) -> Tensors:
        return self.ranks.for_checkpoint(tensors)

    def take_back(self, tensors: Tensors, stored: Tensors) -> None:
        self.ranks.from_checkpoint(tensors, stored)

    def introduce(self, log: RunLog) -> None:
        super().introduce(log)
        if self.world.world > 1:
            log.line(self.ranks.describe())
        if self.alignment is not None:
            log.line(self.alignment.describe())
        for line in self.activations.choices():
            log.line(line)

    def close(self) -> None:
        self.activations.close()
        super().close()
