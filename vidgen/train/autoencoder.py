"""Training the Video DC-AE: reconstruction first, then against a discriminator as well.

Ranks hold whole copies and average gradients: at 0.46 G parameters a copy with its optimizer is
8 GB, and the adaptive weight asks for gradients of the last layer alone, which sharding would make
a collective each.
"""

import gc
import math
import random
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vidgen.config import diff, dump_yaml, read_recipe, to_dict
from vidgen.data import open_loader
from vidgen.data.loader import Batch
from vidgen.errors import UserError
from vidgen.models.video_dcae import VideoDCAE, load_weights
from vidgen.models.video_dcae.discriminator import PatchGAN3D
from vidgen.models.video_dcae.losses import adaptive_weight, hinge, l1, perceptual_distance
from vidgen.runtime import checkpoint, ops, parallel
from vidgen.runtime.observe.memory import peak_memory_gb
from vidgen.runtime.observe.quality import psnr
from vidgen.runtime.observe.timer import StepTimer
from vidgen.runtime.parallel import flight
from vidgen.train.autoencoder_config import AutoencoderRecipe
from vidgen.train.log import RunLog
from vidgen.train.optim import (
    EMA,
    build_optimizer,
    check_states_fit,
    learning_rate,
    set_learning_rate,
    state_tensors,
)
from vidgen.train.run_dir import make_run_dir, set_old_run_aside
from vidgen.train.start import compute_dtype, launch_command
from vidgen.train.stopping import StopSignals


class AutoencoderTrainer:
    """Trains what the recipe describes; goes on from the newest checkpoint of its run directory."""

    def __init__(self, recipe: AutoencoderRecipe, *, fresh: bool = False) -> None:
        self.recipe, self.run_dir = recipe, Path(recipe.run_dir)
        self.perceptual = _perceptual(recipe)
        self.world = parallel.start(recipe.train.device)
        self.device = self.world.device
        self.dtype = compute_dtype(recipe.train.dtype, self.device)
        if self.perceptual is not None:
            self.perceptual.to(self.device)
        self.loader = open_loader(
            recipe.data,
            seed=recipe.seed,
            rank=self.world.rank,
            world=self.world.world,
            device=self.device,
            temporal_step=VideoDCAE.compression[0],
            causal=VideoDCAE.causal,
            spatial_multiple=VideoDCAE.compression[1],
        )
        make_run_dir(self.run_dir)
        self.step = 0
        self._saving: checkpoint.Saving | None = None
        newest = None if fresh else checkpoint.latest(self._checkpoints)
        self._build(resuming=newest is not None)
        if newest is not None:
            self._resume(newest)
        elif fresh and self.world.rank == 0:
            set_old_run_aside(self.run_dir, keep=recipe.data.manifest)

    # The loop -----------------------------------------------------------------------------------

    def run(self, stop_after: int | None = None) -> int:
        """Train to the recipe's last step, or to `stop_after`; returns the steps completed."""
        recipe, last = self.recipe, min(self.recipe.train.steps, stop_after or sys.maxsize)
        log = RunLog(
            self.run_dir,
            recipe.train.steps,
            resume_step=self.step,
            log_every=recipe.train.log_every,
            enabled=self.world.rank == 0,
        )
        timer = StepTimer(self.device)
        collecting = gc.isenabled()
        gc.disable()
        try:
            with self.world.watch(), log, StopSignals() as stop:
                self._introduce(log)
                timer.restart()
                stopping = False
                while self.step < last and not stopping:
                    metrics = self._train_step(timer)
                    phases = timer.lap()
                    log.step(self.step, **metrics, **self._speed(phases, metrics.pop("videos")))
                    stopping = self._agree(stop.received is not None)
                    if self.step % recipe.checkpoint.every == 0 or self.step == last or stopping:
                        with timer.phase("checkpoint"):
                            self._saving = self._save()
                if self._saving is not None:
                    log.line(f"checkpoint {self._saving.wait()}")
                if stopping:
                    self._end_early(log, stop.received or signal.SIGTERM)
        finally:
            if collecting:
                gc.enable()
            self.loader.close()
            self.world.close()
        return self.step

    def _train_step(self, timer: StepTimer) -> dict[str, Any]:
        recipe = self.recipe
        torch.manual_seed(_step_seed(recipe.seed, self.step, self.world.rank))  # dropout
        lr = learning_rate(recipe.optim, self.step, recipe.train.steps)
        set_learning_rate(self.optimizer, lr)
        adversarial = recipe.loss.adversarial > 0 and self.step >= recipe.loss.adversarial_from
        totals: dict[str, Tensor] = {}
        videos = 0
        for _ in range(recipe.train.accumulate):
            with self._phase(timer, "data"):
                batch = next(self.loader)
            video = self._video(batch)
            videos += len(video)
            with self._phase(timer, "forward"), self._autocast():
                reconstruction, _ = self.model(video)
            with self._phase(timer, "losses"):
                losses = self._losses(video, reconstruction, adversarial)
            with self._phase(timer, "backward"):
                (losses["loss"] / recipe.train.accumulate).backward()
            if adversarial:
                with self._phase(timer, "discriminator"):
                    losses["discriminator"] = self._judge(video, reconstruction.detach())
            losses["psnr"] = psnr(video / 2, reconstruction.detach().float() / 2).mean()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach() / recipe.train.accumulate
        with self._phase(timer, "optimizer"):
            self._average(self.named.values())
            norm = parallel.clip_grad_norm(self.named.values(), recipe.optim.clip)
            means = {name: self._mean(value) for name, value in totals.items()}
            self._check_finite(means["loss"], float(norm), batch)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if adversarial:
                self._average(self.discriminator.parameters())
                self.discriminator_optimizer.step()
                self.discriminator_optimizer.zero_grad(set_to_none=True)
            self.step += 1
            if self.ema is not None:
                self.ema.update(self.step)
        frames, height, width = video.shape[2:]
        return {
            **means,
            "grad_norm": float(norm),
            "lr": lr,
            "videos": videos,
            "bucket": f"{frames}x{height}x{width}",
        }

    def _video(self, batch: Batch) -> Tensor:
        """In [-1, 1]; of some steps, the same on every rank, one frame of each clip."""
        video: Tensor = ops.video_to_input(batch.video_BTHWC, 0.5, 0.5, torch.float32)
        draw = random.Random(_step_seed(self.recipe.seed, self.step, -1))
        if draw.random() < self.recipe.loss.image_fraction:
            at = draw.randrange(video.shape[2])
            video = video[:, :, at : at + 1]
        return video

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
            with self._autocast():
                opinion = -self.discriminator(reconstruction).float().mean()
            self.discriminator.requires_grad_(True)
            balance = adaptive_weight(loss, opinion, self.model.decoder.project_out.weight)
            found["adversarial"] = opinion
            loss = loss + weights.adversarial * balance * opinion
        return {"loss": loss, **found}

    def _judge(self, video: Tensor, reconstruction: Tensor) -> Tensor:
        with self._autocast():
            loss = hinge(self.discriminator(video), self.discriminator(reconstruction))
        (loss / self.recipe.train.accumulate).backward()
        return loss

    # Building and state ----------------------------------------------------------------------

    def _build(self, resuming: bool) -> None:
        recipe = self.recipe
        generator = torch.Generator().manual_seed(recipe.seed)
        self.model = VideoDCAE(recipe.autoencoder)
        self.model.init_weights(generator)
        start = recipe.train.init_from or recipe.autoencoder.path
        if start is not None and not resuming:
            load_weights(self.model, start)
        self.discriminator = PatchGAN3D(recipe.loss.discriminator_width)
        self.discriminator.init_weights(generator)
        for module in (self.model, self.discriminator):
            module.to(self.device)
        if recipe.train.compile:
            self.model.compile()
        self.named = dict(self.model.named_parameters())
        self.ema = EMA(self.named, recipe.train.ema_decay) if recipe.train.ema_decay else None
        self.optimizer = build_optimizer(self.named.values(), recipe.optim, self.ema)
        self.discriminator_optimizer = build_optimizer(
            self.discriminator.parameters(), recipe.optim
        )
        set_learning_rate(self.discriminator_optimizer, recipe.loss.discriminator_lr)

    @property
    def _checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        groups = {
            "model": {name: p.detach() for name, p in self.named.items()},
            "optim": state_tensors(self.named, self.optimizer),
            "discriminator": {k: v.detach() for k, v in self.discriminator.state_dict().items()},
            "discriminator_optim": state_tensors(
                dict(self.discriminator.named_parameters()), self.discriminator_optimizer
            ),
        }
        if self.ema is not None:
            groups["ema"] = self.ema.tensors
        return groups

    def _save(self) -> checkpoint.Saving:
        return checkpoint.save(
            self._checkpoints,
            self.step,
            self._tensors(),
            {
                "recipe": to_dict(self.recipe),
                "loader": self.loader.state_dict(),
                "trainer": {"step": self.step},
            },
            keep_last=self.recipe.checkpoint.keep_last,
            keep_every=self.recipe.checkpoint.keep_every,
        )

    def _resume(self, newest: Path) -> None:
        then = read_recipe(checkpoint.read_objects(newest)["recipe"], [], AutoencoderRecipe)
        changed = diff(then.autoencoder, self.recipe.autoencoder)
        if changed:
            raise UserError(
                f"{newest} was trained with another autoencoder (autoencoder.{changed[0]}); resume "
                "with the recipe as it was, or pass --fresh to begin a new run beside it"
            )
        check_states_fit(newest, then.optim, self.recipe.optim)
        objects = checkpoint.load(newest, self._tensors())
        self.loader.load_state_dict(objects["loader"])
        self.step = objects["trainer"]["step"]

    # Numbers and lines -----------------------------------------------------------------------

    def _introduce(self, log: RunLog) -> None:
        recipe = self.recipe
        if self.world.rank == 0:
            (self.run_dir / "recipe.yaml").write_text(dump_yaml(recipe))
        millions = sum(p.numel() for p in self.named.values()) / 1e6
        log.line(
            f"{recipe.name}: {millions:,.1f} M parameters on {self.world.world} x "
            f"{self.device.type} in {str(self.dtype).removeprefix('torch.')}; run directory "
            f"{self.run_dir}"
        )
        if self.step:
            log.line(f"resumed at step {self.step} of {recipe.train.steps}")

    def _speed(self, phases: dict[str, float], videos: int) -> dict[str, Any]:
        ms = sum(phases.values())
        return {
            "ms": ms,
            "videos_per_s": videos * self.world.world / (ms / 1000),
            "data_ms": phases.get("data", 0.0),
            "memory_gb": peak_memory_gb(self.device),
            "phases": phases,
        }

    def _check_finite(self, loss: float, norm: float, batch: Batch) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        if self._saving is not None:
            self._saving.wait()
        newest = checkpoint.latest(self._checkpoints)
        rows = ", ".join(map(str, batch.keys[:8]))
        raise UserError(
            f"step {self.step + 1}: loss {loss:g}, gradient norm {norm:g}, in a batch of manifest "
            f"rows {rows}; nothing was updated. The newest checkpoint is {newest or 'none'}; try a "
            "lower optim.lr"
        )

    def _end_early(self, log: RunLog, received: signal.Signals) -> None:
        log.line(
            f"stopped by {received.name} after step {self.step}; everything is saved. To go on: "
            f"{launch_command(self.world.world)} {self.run_dir / 'recipe.yaml'}"
        )
        log.close()
        if received is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + received)

    def _phase(self, timer: StepTimer, name: str) -> AbstractContextManager[None]:
        flight.note(name, step=self.step + 1)
        return timer.phase(name)

    def _average(self, parameters: Any) -> None:
        if self.world.world == 1:
            return
        grads = [p.grad for p in parameters]
        works = [dist.all_reduce(grad, async_op=True) for grad in grads]
        for work in works:
            work.wait()
        torch._foreach_div_(grads, self.world.world)

    def _mean(self, value: Tensor) -> float:
        if self.world.world > 1:
            value = value.clone()
            dist.all_reduce(value)
            value = value / self.world.world
        return float(value)

    def _agree(self, wish: bool) -> bool:
        if self.world.world == 1:
            return wish
        flag = torch.tensor(int(wish), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


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
