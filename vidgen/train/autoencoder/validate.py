"""What an autoencoder's training is judged by on the way: held-out clips, reconstructed.

The clips are the same at every validation, so that only the weights differ.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from vidgen.data import open_loader
from vidgen.data.loader import Batch
from vidgen.data.read.video import write_image, write_video, written_suffix
from vidgen.errors import UserError
from vidgen.metrics.fidelity import psnr
from vidgen.models.geometry import Geometry
from vidgen.models.video_dcae import VideoDCAE
from vidgen.recipe.autoencoder import AutoencoderRecipe
from vidgen.runtime import ops, parallel
from vidgen.train.report.log import PSNR
from vidgen.train.report.validation import Shown, Validation, ValidationPage, Video, step_folder


def pixels_to_input(batch: Batch) -> Tensor:
    """The clips of a batch in [-1, 1], (B, 3, T, H, W)."""
    video: Tensor = ops.video_to_input(batch.video_BTHWC, 0.5, 0.5, torch.float32)
    return video


class AutoencoderValidator:
    """Every rank calls it at the same step, and reconstructs clips of its own."""

    def __init__(self, recipe: AutoencoderRecipe, world: parallel.World) -> None:
        if recipe.validate.every is not None and recipe.validate.manifest is None:
            raise UserError(
                f"validate.every is {recipe.validate.every} and validate.manifest is not set: name "
                "held-out clips, or leave validate.every=null"
            )
        self._recipe, self._config, self._world = recipe, recipe.validate, world
        self.show = ValidationPage(recipe, world.rank).show

    @torch.no_grad()
    def __call__(self, step: int, model: VideoDCAE) -> Validation:
        recipe, config = self._recipe, self._config
        assert config.manifest is not None
        loader = open_loader(
            replace(recipe.data, manifest=config.manifest),
            seed=recipe.seed,
            rank=self._world.rank,
            world=self._world.world,
            device=self._world.device,
            geometry=Geometry.of(model),
        )
        sums: dict[str, Tensor] = {}  # by bucket: decibels, and how many frames they are of
        shown: list[Shown] = []
        try:
            for _ in range(config.batches):
                batch = next(loader)
                video = pixels_to_input(batch)
                again = model(video)[0].float().clamp(-1, 1)
                decibels = psnr(video, again, peak=2)
                counted = torch.stack((decibels.sum(), decibels.new_tensor(decibels.numel())))
                name = str(batch.bucket)
                sums[name] = sums[name] + counted if name in sums else counted
                missing = config.videos - len(shown)
                shown += self._write(step, batch, video[:missing], again[:missing], len(shown))
        finally:
            loader.close()
        # A step's batches are of one bucket on all ranks: these are in the same order.
        for counted in sums.values():
            if self._world.world > 1:
                dist.all_reduce(counted)
        figures = {name: float(total / count) for name, (total, count) in sums.items()}
        return Validation(PSNR, figures, tuple(shown))

    def _write(
        self, step: int, batch: Batch, video: Tensor, again: Tensor, begin: int
    ) -> list[Shown]:
        """Clips with their reconstructions to their right; rank 0 keeps its own."""
        made: list[Shown] = []
        if self._world.rank:
            return made
        both = ((torch.cat((video, again), dim=4) + 1) * 127.5).round().to(torch.uint8)
        for i, pair_CTHW in enumerate(both):
            pixels: Video = pair_CTHW.permute(1, 2, 3, 0).cpu().numpy()
            still = len(pixels) == 1
            number = begin + i
            path = step_folder(self._recipe.run_dir, step) / f"{number:04d}"
            path = path.with_suffix(written_suffix(len(pixels)))
            if still:
                write_image(path, pixels[0])
            else:
                write_video(path, pixels, batch.fps[i])
            made.append(Shown(path, f"{number}: clip and reconstruction", pixels))
        return made
