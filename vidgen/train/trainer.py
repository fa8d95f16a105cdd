"""The training loop: clips in, checkpoints and one line of metrics a step out."""

import gc
import math
import shlex
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vidgen.config import diff, dump_yaml, read_recipe, to_dict
from vidgen.data import open_loader
from vidgen.data.loader import Batch
from vidgen.diffusion import flow
from vidgen.errors import UserError
from vidgen.models.build import check_parts_fit
from vidgen.models.mmdit import MMDiT, Seams
from vidgen.models.mmdit.flops import flops, parameters
from vidgen.models.mmdit.parallel import blocks
from vidgen.runtime import checkpoint, parallel
from vidgen.runtime.attention import agree
from vidgen.runtime.observe.memory import peak_memory_gb
from vidgen.runtime.observe.mfu import hfu, mfu, peak
from vidgen.runtime.observe.timer import StepTimer
from vidgen.runtime.parallel import flight
from vidgen.train.block_memory import BlockActivations
from vidgen.train.config import Recipe
from vidgen.train.encoders import build_encoders
from vidgen.train.examples import Example, ExampleMaker
from vidgen.train.log import RunLog
from vidgen.train.optim import EMA, build_optimizer, learning_rate
from vidgen.train.ranks import Ranks
from vidgen.train.run_dir import make_run_dir, set_old_run_aside
from vidgen.train.start import compute_dtype, launch_command, load_initial
from vidgen.train.stopping import StopSignals

COLLECT_EVERY = 200  # steps between garbage collections, which otherwise stop a step at random


class Trainer:
    """Trains what a recipe describes; goes on from the newest checkpoint of its run directory."""

    def __init__(self, recipe: Recipe, *, fresh: bool = False) -> None:
        self.recipe = recipe
        self.run_dir = Path(recipe.run_dir)
        self.world = parallel.start(recipe.train.device, timeout_s=recipe.parallel.timeout_s)
        self.device = self.world.device
        if self.world.world > 1:
            agree()  # on attention's backends, as rank 0 has measured them
        self.dtype = compute_dtype(recipe.train.dtype, self.device)
        self.ranks = Ranks(recipe.parallel, self.world, recipe.model, self.dtype)
        autoencoder, text, codec = build_encoders(recipe, self.device, self.dtype)
        check_parts_fit(recipe.model, autoencoder, text)
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
        self.text_length = text.length
        # Ahead of the model: a wrong manifest should not wait for 12 G parameters.
        self.loader = open_loader(
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
        make_run_dir(self.run_dir)
        self.step = 0
        self._saving: checkpoint.Saving | None = None
        newest = None if fresh else checkpoint.latest(self._checkpoints)
        self.model = self._build_model(resuming=newest is not None)
        self.named = dict(self.model.named_parameters())
        self.ema = EMA(self.named, recipe.train.ema_decay) if recipe.train.ema_decay else None
        self.optimizer = build_optimizer(self.named.values(), recipe.optim)
        self.activations = BlockActivations(recipe, self.device)
        self.seams = self.ranks.seams(Seams(run_block=self.activations.run_block))
        checkpoint.reserve(self._state_bytes())
        if newest is not None:
            self._resume(newest)
        elif fresh and self.world.rank == 0:
            set_old_run_aside(self.run_dir, keep=recipe.data.manifest)

    # The loop -----------------------------------------------------------------------------------

    def run(self, stop_after: int | None = None) -> int:
        """Train to the recipe's last step, or to `stop_after`; returns the steps completed."""
        with self.world.watch():
            return self._run(stop_after)

    def _run(self, stop_after: int | None) -> int:
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
        # What stands now stays: no later collection looks at it.
        gc.collect()
        gc.freeze()
        try:
            with log, StopSignals() as stop:
                self._introduce(log)
                timer.restart()
                stopping = False
                while self.step < last and not stopping:
                    metrics = self._train_step(timer)
                    # Before the save, whose time counts in the step after: a step that has a
                    # checkpoint has its line of metrics too, whenever a crash comes.
                    log.step(self.step, **self._speed(metrics, timer.lap()))
                    stopping = self._agree(stop.received is not None)
                    if self.step % recipe.checkpoint.every == 0 or self.step == last or stopping:
                        with self._phase(timer, "checkpoint"):
                            self._saving = self._save()
                    if self.step % COLLECT_EVERY == 0:
                        gc.collect()
                self._conclude(log)
                if stopping:
                    self._end_early(log, stop.received or signal.SIGTERM)
        finally:
            self._wait_for_checkpoint()  # until then its ranks talk to each other
            gc.unfreeze()
            if collecting:
                gc.enable()
            self.loader.close()
            self.activations.close()
            self.world.close()
        return self.step

    def _train_step(self, timer: StepTimer) -> dict[str, Any]:
        recipe = self.recipe
        lr = learning_rate(recipe.optim, self.step, recipe.train.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses: list[tuple[list[int], Tensor]] = []
        work = _Work()
        for micro in range(recipe.train.accumulate):
            last = micro + 1 == recipe.train.accumulate
            parallel.synchronise_gradients(self.model, last)
            with self._phase(timer, "data"):
                batch = next(self.loader)
            with self._phase(timer, "encode"):
                example = self.make_example(batch)
            with self._phase(timer, "forward"):
                loss_B = self.sample_losses(example)
            with self._phase(timer, "backward"):
                (loss_B.mean() / recipe.train.accumulate).backward()
            losses.append((batch.keys, loss_B.detach()))
            work.add(batch, example, self)
        with self._phase(timer, "optimizer"):
            self.ranks.finish_gradients(self.named)
            norm = parallel.clip_grad_norm(self.named.values(), recipe.optim.clip)
            mean_loss = self._mean(torch.stack([loss_B.mean() for _, loss_B in losses]).mean())
            self._check_finite(mean_loss, float(norm), losses, batch.epoch)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            if self.ema is not None:
                self.ema.update(self.step)
        return {"loss": mean_loss, "grad_norm": float(norm), "lr": lr, "work": work}

    def _phase(self, timer: StepTimer, name: str) -> AbstractContextManager[None]:
        flight.note(name, step=self.step + 1)
        return timer.phase(name)

    def sample_losses(self, example: Example) -> Tensor:
        """The loss of each sample, (B,)."""
        with self._autocast():
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
        return flow.loss_per_sample(predicted, example.target_BVD)

    # Building and state ----------------------------------------------------------------------

    def _build_model(self, resuming: bool) -> MMDiT:
        recipe = self.recipe
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

    def _fill(self, model: MMDiT, resuming: bool) -> None:
        if self.recipe.train.init_from and not resuming:
            load_initial(model, self.recipe.train.init_from)
        else:
            model.init_weights(torch.Generator().manual_seed(self.recipe.seed))

    @property
    def _checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        groups: dict[str, dict[str, Tensor]] = {
            "model": {name: p.detach() for name, p in self.named.items()},
            "optim": {
                f"{name}.{key}": value
                for name, p in self.named.items()
                for key, value in self.optimizer.state[p].items()
            },
        }
        if self.ema is not None:
            groups["ema"] = self.ema.tensors
        return groups

    def _state_bytes(self) -> int:
        """What this rank has to save: weights, AdamW's two moments, the moving average."""
        return sum(
            checkpoint.held_bytes(p) * (3 if self.ema is None else 4) for p in self.named.values()
        )

    def _save(self) -> checkpoint.Saving:
        return checkpoint.save(
            self._checkpoints,
            self.step,
            self.ranks.for_checkpoint(self._tensors()),
            {
                "recipe": to_dict(self.recipe),
                "loader": self.loader.state_dict(),
                "trainer": {"step": self.step},
            },
            keep_last=self.recipe.checkpoint.keep_last,
            keep_every=self.recipe.checkpoint.keep_every,
        )

    def _resume(self, newest: Path) -> None:
        then = read_recipe(checkpoint.read_objects(newest)["recipe"], [], Recipe)
        for part in ("model", "autoencoder", "text", "flow"):
            changed = diff(getattr(then, part), getattr(self.recipe, part))
            if changed:
                raise UserError(
                    f"{newest} was trained with another {part} ({part}.{changed[0]}); resume with "
                    "the recipe as it was, or pass --fresh to begin a new run beside it"
                )
        tensors = self._tensors()
        stored = self.ranks.for_checkpoint(tensors)
        objects = checkpoint.load(newest, stored)
        self.ranks.from_checkpoint(tensors, stored)
        self.loader.load_state_dict(objects["loader"])
        self.step = objects["trainer"]["step"]

    # Numbers and lines -----------------------------------------------------------------------

    def _introduce(self, log: RunLog) -> None:
        recipe = self.recipe
        if self.world.rank == 0:
            (self.run_dir / "recipe.yaml").write_text(dump_yaml(recipe))
        self.peak = peak(self.device, self.dtype)
        millions = parameters(recipe.model) / 1e6
        log.line(
            f"{recipe.name}: {millions:,.1f} M parameters on {self.world.world} x "
            f"{self.device.type} in {str(self.dtype).removeprefix('torch.')}; MFU of {self.peak}; "
            f"run directory {self.run_dir}"
        )
        if self.world.world > 1:
            log.line(self.ranks.describe())
        if self.step:
            log.line(f"resumed at step {self.step} of {recipe.train.steps}")

    def _speed(self, metrics: dict[str, Any], phases: dict[str, float]) -> dict[str, Any]:
        work, ms = metrics.pop("work"), sum(phases.values())
        seconds, ranks = ms / 1000, self.ranks.data_world
        return {
            **metrics,
            "ms": ms,
            "tokens_per_s": work.tokens * ranks / seconds,
            "videos_per_s": work.videos * ranks / seconds,
            "mfu": mfu(work.model_flops, seconds, self.peak, self.ranks.together),
            "hfu": hfu(work.executed_flops, seconds, self.peak, self.ranks.together),
            "data_ms": phases.get("data", 0.0),
            "replaced_clips": self.loader.replaced or None,
            "memory_gb": peak_memory_gb(self.device),
            "bucket": work.bucket,
            "phases": phases,
        }

    def _check_finite(
        self, loss: float, norm: float, losses: list[tuple[list[int], Tensor]], epoch: int
    ) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        rows = [row for keys, _ in losses for row in keys]
        finite = torch.cat([loss_B for _, loss_B in losses]).isfinite().tolist()
        bad = [row for row, good in zip(rows, finite, strict=True) if not good]
        where = (
            f"of manifest row(s) {_some(bad)}"
            if bad
            else f"in a batch of manifest rows {_some(rows)} whose losses are finite on this rank"
        )
        self._wait_for_checkpoint()
        newest = checkpoint.latest(self._checkpoints)
        raise UserError(
            f"step {self.step + 1}: loss {loss:g}, gradient norm {norm:g}, {where}, epoch {epoch}; "
            f"nothing was updated. The newest checkpoint is {newest or 'none'}; try a lower "
            "optim.lr"
        )

    def _wait_for_checkpoint(self) -> None:
        """Until the one being written is committed, or has failed."""
        while self._saving is not None and not self._saving.done():
            time.sleep(0.01)

    def _conclude(self, log: RunLog) -> None:
        if bad := self.loader.bad_clips:
            log.line(f"{len(bad)} clip(s) could not be read and were passed over")
        if self.recipe.data.latents is not None:
            log.line(f"latents: cached {self.loader.cached} / computed {self.loader.computed}")
        if self._saving is not None:
            log.line(f"checkpoint {self._saving.wait()}: {self._saving.summary}")

    def _end_early(self, log: RunLog, received: signal.Signals) -> None:
        # The recipe as it was run, overrides and all: no --fresh, which would set the run aside.
        log.line(
            f"stopped by {received.name} after step {self.step}; everything is saved. To go on: "
            f"{launch_command(self.world.world)} {shlex.quote(str(self.run_dir / 'recipe.yaml'))}"
        )
        log.close()
        if received is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + received)

    def _mean(self, value: Tensor) -> float:
        if self.world.world > 1:
            dist.all_reduce(value, op=dist.ReduceOp.SUM)
            value = value / self.world.world
        return float(value)

    def _agree(self, wish: bool) -> bool:
        """Whether any rank wishes to stop: all must do so after the same step. So must they where
        too many clips are bad, of all that any has met."""
        if self.world.world == 1:
            return wish
        told = torch.tensor([int(wish), len(self.loader.bad_clips)], device=self.device)
        dist.all_reduce(told)
        wishes, bad = told.tolist()
        if bad > self.recipe.data.bad_clip_limit:
            everyones: list[Any] = [None] * self.world.world
            dist.all_gather_object(everyones, self.loader.bad_clips)
            self.loader.check_bad_clips(dict(sorted(x for one in everyones for x in one.items())))
        return bool(wishes)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.world.world > 1 or self.dtype == torch.float32:
            return nullcontext()  # sharded parameters are gathered in the compute dtype already
        return torch.autocast(self.device.type, dtype=self.dtype)


class _Work:
    """What one step of one rank got through."""

    def __init__(self) -> None:
        self.tokens = self.videos = self.model_flops = self.executed_flops = 0
        self.bucket = ""

    def add(self, batch: Batch, example: Example, trainer: Trainer) -> None:
        model, plan = trainer.recipe.model, trainer.recipe.recompute
        videos = len(batch.keys)
        one = flops(model, example.grid, trainer.text_length)
        share = (min(plan.dual, model.depth) + min(plan.single, model.depth_single_blocks)) / (
            model.depth + model.depth_single_blocks
        )
        self.videos += videos
        self.tokens += videos * math.prod(example.grid)
        self.model_flops += videos * one.training
        self.executed_flops += videos * round(one.training + share * one.forward)
        self.bucket = f"{batch.bucket.frames}x{batch.bucket.height}x{batch.bucket.width}"


def _some(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
