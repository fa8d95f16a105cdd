"""Training the Video DC-AE: reconstruction first, then against a discriminator as well.

Ranks hold whole copies and average gradients: at 0.46 G parameters a copy with its optimizer is
8 GB, and the adaptive weight needs gradients of the last layer alone, which sharding would turn
into a collective each.
"""

import math
import random
from collections.abc import Iterable
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vidgen.data import open_loader
from vidgen.data.loader import Batch, Loader
from vidgen.errors import UserError
from vidgen.metrics.fidelity import psnr
from vidgen.models.geometry import Geometry
from vidgen.models.video_dcae import VideoDCAE, load_weights
from vidgen.models.video_dcae.discriminator import PatchGAN3D
from vidgen.models.video_dcae.losses import adaptive_weight, hinge, l1, perceptual_distance
from vidgen.recipe.autoencoder import AutoencoderRecipe
from vidgen.runtime.observe.flops import training_flops
from vidgen.runtime.parallel.zero import clip_grad_norm
from vidgen.train.autoencoder.alignment import AutoencoderAlignment
from vidgen.train.autoencoder.validate import AutoencoderValidator, pixels_to_input
from vidgen.train.loop import Tensors, TrainingLoop
from vidgen.train.optim.optimizer import build_optimizer, set_learning_rate, state_tensors
from vidgen.train.report.log import RunLog
from vidgen.train.step_result import StepResult

# Where the losses of clips and of single frames are kept apart.
CLIPS, FRAMES = 0.0, 0.5


class AutoencoderTrainer(TrainingLoop[AutoencoderRecipe]):
    FIXED_ON_RESUME = ("autoencoder", "alignment")
    LOSS_BY_BIN = "l1_by_kind"
    model: VideoDCAE

    # From a batch to its gradients ---------------------------------------------------------------

    def forward_backward(self, batch: Batch) -> StepResult:
        accumulate, loss = self.recipe.train.accumulate, self.recipe.loss
        if batch.micro_step == 0:  # dropout
            torch.manual_seed(_step_seed(self.recipe.seed, self.step, self.world.rank))
        adversarial = loss.adversarial > 0 and self.step >= loss.adversarial_from
        with self.phase("encode"):
            part = self._frames(batch)
            video = pixels_to_input(batch)[:, :, part]  # in [-1, 1]
        with self.phase("forward"), self.autocast():
            stage = None if self.alignment is None else self.recipe.alignment.layer
            reconstruction, kept = self.model(video, stage)
        with self.phase("losses"):
            losses = self._losses(video, reconstruction, adversarial)
        if self.alignment is not None:
            with self.phase("alignment"), self.autocast():
                distance = self.alignment.losses(kept, batch.video_BTHWC[:, part]).mean()
            losses["loss"] = losses["loss"] + self.alignment.weight * distance
            losses["alignment"] = -distance
        with self.phase("backward"):
            (losses["loss"] / accumulate).backward()
        reconstruction = reconstruction.detach().float()
        if adversarial:
            with self.phase("discriminator"):
                losses["discriminator"] = self._discriminator_loss(video, reconstruction)
                (losses["discriminator"] / accumulate).backward()
        losses["psnr"] = psnr(video, reconstruction, peak=2).mean().float()
        clips, shape = len(video), (video.shape[2], video.shape[3], video.shape[4])
        flops = clips * self._flops(shape)
        return StepResult(
            batch,
            bin_B=torch.full((clips,), FRAMES if shape[0] == 1 else CLIPS, device=self.device),
            loss_B=(reconstruction - video).abs().mean(dim=(1, 2, 3, 4)),
            tokens=clips * math.prod(Geometry.of(self.model).latent_grid(*shape)),
            model_flops=flops,
            hardware_flops=flops,
            figures={name: value.detach() for name, value in losses.items()},
        )

    def _frames(self, batch: Batch) -> slice:
        """All of a clip; in some steps, the same on every rank, one frame."""
        draw = random.Random(_step_seed(self.recipe.seed, self.step, -1))
        if draw.random() < self.recipe.loss.image_fraction:
            at = draw.randrange(batch.video_BTHWC.shape[1])
            return slice(at, at + 1)
        return slice(0, batch.video_BTHWC.shape[1])

    def _losses(
        self, video: Tensor, reconstruction: Tensor, adversarial: bool
    ) -> dict[str, Tensor]:
        weights = self.recipe.loss
        found = {"l1": l1(reconstruction, video)}
        loss = found["l1"]
        if self.perceptual is not None:
            found["lpips"] = perceptual_distance(self.perceptual, reconstruction, video)
            loss = loss + weights.lpips * found["lpips"]
        if adversarial:
            self.discriminator.requires_grad_(False)
            with self.autocast():
                opinion = -self.discriminator(reconstruction).float().mean()
            self.discriminator.requires_grad_(True)
            found["adversarial"] = opinion
            scaled = weights.adversarial * opinion
            if weights.adaptive:
                last = self.model.decoder.project_out.weight
                scaled = scaled * adaptive_weight(loss, opinion, last)
            loss = loss + scaled
        return {"loss": loss, **found}

    def _discriminator_loss(self, video: Tensor, reconstruction: Tensor) -> Tensor:
        with self.autocast():
            return hinge(self.discriminator(video), self.discriminator(reconstruction))

    @lru_cache(maxsize=64)  # noqa: B019  there is one of it, as long as the run
    def _flops(self, shape: tuple[int, int, int]) -> int:
        """Of one clip, forward and backward, counted on meta tensors. Those of LPIPS and the
        discriminator are not the model's."""
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"):
            model, video = VideoDCAE(self.recipe.autoencoder), torch.empty(1, 3, *shape)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(video)
        return training_flops(counter.get_total_flops())

    def finish_gradients(self) -> None:
        self._average(self.named.values())
        self._average(self.discriminator.parameters())
        # Clipped apart, so that neither network's norm scales the other's gradients.
        clip_grad_norm(self.discriminator.parameters(), self.recipe.optim.clip)
        if self.alignment is not None:
            self._average(self.alignment.projection.parameters())
            self.alignment.finish_gradients()

    def _average(self, parameters: Iterable[nn.Parameter]) -> None:
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.world.world == 1 or not grads:
            return
        works = [dist.all_reduce(grad, async_op=True) for grad in grads]
        for work in works:
            work.wait()
        torch._foreach_div_(grads, self.world.world)

    def update_others(self, lr: float) -> None:
        self.discriminator_optimizer.step()  # nothing happens without gradients
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        if self.alignment is not None:
            self.alignment.update(lr)

    def validate(self, log: RunLog) -> None:
        with self.autocast():
            found = self.validator(self.step, self.model)
        self.validator.show(self.step, found, log)

    # Building ------------------------------------------------------------------------------------

    def open_data(self) -> Loader:
        recipe = self.recipe
        self.perceptual = _perceptual(recipe)
        if self.perceptual is not None:
            self.perceptual.to(self.device)
        self.validator = AutoencoderValidator(recipe, self.world)
        return open_loader(
            recipe.data,
            seed=recipe.seed,
            rank=self.world.rank,
            world=self.world.world,
            device=self.device,
            accumulate=recipe.train.accumulate,
            geometry=Geometry.of(self.recipe.autoencoder),
        )

    def build_model(self, resuming: bool) -> VideoDCAE:
        recipe = self.recipe
        generator = torch.Generator().manual_seed(recipe.seed)
        model = VideoDCAE(recipe.autoencoder)
        model.init_weights(generator)
        start = recipe.train.init_from or recipe.autoencoder.path
        if start is not None and not resuming:
            load_weights(model, start)
        self.discriminator = PatchGAN3D(recipe.loss.discriminator_width)
        self.discriminator.init_weights(generator)
        for module in (model, self.discriminator):
            module.to(self.device)
        if recipe.train.compile:
            model.compile()
        self.discriminator_optimizer = build_optimizer(
            self.discriminator.parameters(), recipe.optim
        )
        set_learning_rate(self.discriminator_optimizer, recipe.loss.discriminator_lr)
        self.alignment: AutoencoderAlignment | None = None
        if recipe.alignment.weight:
            self.alignment = AutoencoderAlignment(recipe, self.device, self.dtype)
            if recipe.train.init_from and not resuming:
                self.alignment.load_projection(recipe.train.init_from)
        return model

    def tensors(self) -> Tensors:
        named = dict(self.discriminator.named_parameters())
        return {
            **super().tensors(),
            "discriminator": {k: v.detach() for k, v in self.discriminator.state_dict().items()},
            "discriminator_optim": state_tensors(named, self.discriminator_optimizer),
            **({} if self.alignment is None else self.alignment.tensors()),
        }

    def log_start(self, log: RunLog) -> None:
        super().log_start(log)
        if self.alignment is not None:
            log.line(self.alignment.describe())


def _perceptual(recipe: AutoencoderRecipe) -> nn.Module | None:
    """Refused, not dropped, when its weights are not there."""
    if recipe.loss.lpips == 0:
        return None
    if recipe.loss.lpips_weights is None:
        raise UserError(
            f"loss.lpips is {recipe.loss.lpips:g} and loss.lpips_weights is not set: name "
            "torchvision's VGG-16 file (vgg16-397923af.pth), or train without with loss.lpips=0"
        )
    from vidgen.models.perceptual import LPIPS

    return LPIPS(recipe.loss.lpips_weights)


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A draw belongs to a step, so that a resumed run draws the same."""
    return (seed * 1_000_003 + step) * 10_007 + rank + 1
