"""Validation of a generator: the loss of held-out clips, and videos of fixed prompts.

Clips, noise and timesteps are the same at every validation, so that only the weights differ.
"""

from dataclasses import replace

import torch
import torch.distributed as dist

from vidgen.data import open_loader
from vidgen.models.geometry import Geometry
from vidgen.models.mmdit import MMDiT
from vidgen.recipe.schema import Recipe
from vidgen.runtime.lazy import Lazy
from vidgen.sample.output import write_sample
from vidgen.sample.pipeline import Parts, Pipeline
from vidgen.sample.request import make_requests
from vidgen.train.encoders import Encoders
from vidgen.train.ranks import Ranks
from vidgen.train.report.log import LOSS
from vidgen.train.report.validation import Shown, Validation, ValidationPage, step_folder
from vidgen.train.step import GeneratorStep


class Validator:
    """Every rank calls it at the same step: sharded weights are gathered by all."""

    def __init__(
        self, recipe: Recipe, ranks: Ranks, encoders: Encoders, dtype: torch.dtype
    ) -> None:
        self._recipe, self._config = recipe, recipe.validate
        self._world, self._ranks, self._dtype = ranks.world, ranks, dtype
        self._autoencoder, self._text = encoders.autoencoder, encoders.text
        self.show = ValidationPage(recipe, ranks.world.rank).show

    @torch.no_grad()
    def __call__(self, step: int, generator: GeneratorStep) -> Validation:
        generator.model.eval()
        try:
            losses = self._losses(generator) if self._config.manifest else {}
            return Validation(LOSS, losses, self._videos(step, generator.model))
        finally:
            generator.model.train()

    def _losses(self, generator: GeneratorStep) -> dict[str, float]:
        recipe, config = self._recipe, self._config
        assert config.manifest is not None
        times = config.timesteps
        sums = torch.zeros(len(times), dtype=torch.float64, device=self._world.device)
        loader = open_loader(
            replace(recipe.data, manifest=config.manifest),
            seed=recipe.seed,
            rank=self._ranks.data_rank,
            world=self._ranks.data_world,
            device=self._world.device,
            geometry=Geometry.of(self._autoencoder, recipe.model.patch_size),
            group=self._ranks.same_sample,
        )
        try:
            for _ in range(config.batches):
                batch = next(loader)
                for i, t in enumerate(times):
                    sums[i] += generator.losses(batch, t).double().mean()
        finally:
            loader.close()
        sums /= config.batches
        if self._world.world > 1:
            dist.all_reduce(sums, op=dist.ReduceOp.SUM)
            sums /= self._world.world
        return {f"{t:g}": loss for t, loss in zip(times, sums.tolist(), strict=True)}

    def _videos(self, step: int, model: MMDiT) -> tuple[Shown, ...]:
        """Every rank makes them, since every rank's weights are needed; rank 0 keeps them."""
        config = self._config
        if not config.prompts:
            return ()
        pipeline = Pipeline(
            self._recipe,
            Parts(Lazy.of(model), Lazy.of(self._autoencoder), Lazy.of(self._text)),
            device=self._world.device,
            dtype=self._dtype,
            source=f"{self._recipe.name} step {step}",
        )
        common = {"frames": config.frames, "steps": config.sample_steps}
        requests = make_requests(
            pipeline,
            config.prompts,
            seed=config.seed,
            **{name: value for name, value in common.items() if value is not None},
        )
        made = []
        folder = step_folder(self._recipe.run_dir, step)
        for number, (request, video) in enumerate(
            zip(requests, pipeline.generate(requests), strict=True)
        ):
            path = folder / f"{number:04d}.{'png' if request.frames == 1 else 'mp4'}"
            if self._world.rank == 0:
                folder.mkdir(parents=True, exist_ok=True)
                write_sample(path, video, request, pipeline.source)
            made.append(Shown(path, request.prompt, video))
        return tuple(made)
