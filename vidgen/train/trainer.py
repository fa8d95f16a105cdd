"""The training loop: clips in, checkpoints and one line of metrics a step out."""

import gc
import math
import shlex
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

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
from vidgen.models.mmdit.flops import parameters
from vidgen.models.mmdit.parallel import blocks
from vidgen.plan.workload import workload_of
from vidgen.runtime import checkpoint, parallel
from vidgen.runtime.attention import agree
from vidgen.runtime.observe.memory import peak_memory_gb
from vidgen.runtime.observe.mfu import peak
from vidgen.runtime.observe.timer import StepTimer
from vidgen.runtime.observe.trace import StepTrace
from vidgen.runtime.parallel import flight
from vidgen.train.block_memory import BlockActivations
from vidgen.train.config import Recipe
from vidgen.train.encoders import build_encoders
from vidgen.train.examples import Example, ExampleMaker
from vidgen.train.health import LossByTimestep, Spikes
from vidgen.train.log import RunLog
from vidgen.train.optim import (
    EMA,
    build_optimizer,
    check_states_fit,
    learning_rate,
    set_learning_rate,
    state_tensors,
)
from vidgen.train.ranks import Ranks
from vidgen.train.recovery import Position, Recovery, Skips
from vidgen.train.run_dir import make_run_dir, set_old_run_aside
from vidgen.train.start import compute_dtype, launch_command, load_initial
from vidgen.train.stopping import StopSignals
from vidgen.train.validate import Validator
from vidgen.train.work import Work, blame, places

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
        self.validator = Validator(
            recipe, self.world, self.ranks, self.dtype, autoencoder, text, self.make_example
        )
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
        self.skips = Skips(self.run_dir)
        self.by_timestep, self.spikes = LossByTimestep(), Spikes(recipe.recovery)
        self._saving: checkpoint.Saving | None = None
        newest = None if fresh else checkpoint.latest(self._checkpoints)
        self.model = self._build_model(resuming=newest is not None)
        self.named = dict(self.model.named_parameters())
        self.ema = EMA(self.named, recipe.train.ema_decay) if recipe.train.ema_decay else None
        self.optimizer = build_optimizer(self.named.values(), recipe.optim, self.ema)
        self.activations = BlockActivations(workload_of(recipe), self.device, self.world.world)
        self.seams = self.ranks.seams(Seams(run_block=self.activations.run_block))
        checkpoint.reserve(self._state_bytes())
        if newest is not None:
            self._resume(newest)
        elif fresh and self.world.rank == 0:
            set_old_run_aside(self.run_dir, keep=recipe.data.manifest)

    # The loop -----------------------------------------------------------------------------------

    def run(self, stop_after: int | None = None, *, profile: tuple[int, int] | None = None) -> int:
        """Train to the recipe's last step, or to `stop_after`; returns the steps completed.

        `profile` names a first and a last step whose trace goes to the run directory.
        """
        recipe = self.recipe
        timeout_s = recipe.parallel.timeout_s
        with (
            Recovery(self.run_dir, self.world, recipe.recovery, timeout_s) as self.recovery,
            self.world.watch(self.recovery.failed),
        ):
            return self._run(stop_after, profile)

    def _run(self, stop_after: int | None, profile: tuple[int, int] | None) -> int:
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
            with log, StopSignals() as stop, self._trace(profile) as trace:
                self._introduce(log)
                if self.step == 0:
                    self._validate(log)
                timer.restart()
                stopping = False
                while self.step < last and not stopping:
                    with trace.step(self.step + 1):
                        metrics = self._train_step(timer)
                    record = self._speed(metrics, timer.lap())
                    self.recovery.completed(self.step, record["ms"], record["bucket"])
                    # Before the save, whose time counts in the step after: a step that has a
                    # checkpoint has its line of metrics too, whenever a crash comes.
                    log.step(self.step, **record)
                    with self._phase(timer, "validate"):
                        self._validate(log)
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
        set_learning_rate(self.optimizer, lr)
        losses: list[tuple[Batch, Tensor, Tensor]] = []
        work = Work()
        for micro in range(recipe.train.accumulate):
            last = micro + 1 == recipe.train.accumulate
            parallel.synchronise_gradients(self.model, last)
            with self._phase(timer, "data"):
                batch = self.skips.next(self.loader)
            with self._phase(timer, "encode"):
                example = self.make_example(batch)
            with self._phase(timer, "forward"):
                loss_B = self.sample_losses(example)
            with self._phase(timer, "backward"):
                (loss_B.mean() / recipe.train.accumulate).backward()
            losses.append((batch, example.t_B, loss_B.detach()))
            again = self.activations.recomputed_share
            work.add(recipe, batch, example, self.text_length, again)
        with self._phase(timer, "optimizer"):
            self.ranks.finish_gradients(self.named)
            norm = parallel.clip_grad_norm(self.named.values(), recipe.optim.clip)
            mean_loss, by_timestep, score = self._judge(losses, float(norm))
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            if self.ema is not None:
                self.ema.update(self.step)
        return {
            "loss": mean_loss,
            "loss_by_t": by_timestep,
            "loss_by_t_z": score,
            "grad_norm": float(norm),
            "lr": lr,
            "work": work,
        }

    def _validate(self, log: RunLog) -> None:
        if self.validator.due(self.step):
            with self._autocast():
                found = self.validator(self.step, self.model, self.sample_losses)
            self.validator.log(self.step, found, log)

    def _trace(self, steps: tuple[int, int] | None) -> StepTrace:
        first, last = steps or (0, -1)  # no step
        folder, rank = self.run_dir / "profiles", self.world.rank
        return StepTrace(folder, first=first, last=last, device=self.device, rank=rank)

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
        recipe, first = self.recipe, self.recipe.train
        if first.init_from and not resuming:
            load_initial(model, first.init_from, first.reinitialise, recipe.seed)
        else:
            model.init_weights(torch.Generator().manual_seed(recipe.seed))

    @property
    def _checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        groups: dict[str, dict[str, Tensor]] = {
            "model": {name: p.detach() for name, p in self.named.items()},
            "optim": state_tensors(self.named, self.optimizer),
        }
        if self.ema is not None:
            groups["ema"] = self.ema.tensors
        return groups

    def _state_bytes(self) -> int:
        """What this rank has to save: weights, AdamW's moments, the moving average."""
        return sum(
            checkpoint.held_bytes(tensor)
            for members in self._tensors().values()
            for tensor in members.values()
        )

    def _save(self) -> checkpoint.Saving:
        return checkpoint.save(
            self._checkpoints,
            self.step,
            self.ranks.for_checkpoint(self._tensors()),
            {
                "recipe": to_dict(self.recipe),
                "loader": self.loader.state_dict(),
                "trainer": {"step": self.step, "loss_by_t": self.by_timestep.state_dict()},
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
        check_states_fit(newest, then.optim, self.recipe.optim)
        tensors = self._tensors()
        stored = self.ranks.for_checkpoint(tensors)
        objects = checkpoint.load(newest, stored)
        self.ranks.from_checkpoint(tensors, stored)
        self.loader.load_state_dict(objects["loader"])
        self.step = objects["trainer"]["step"]
        if "loss_by_t" in objects["trainer"]:  # older checkpoints have none: they begin again
            self.by_timestep.load_state_dict(objects["trainer"]["loss_by_t"])

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
        for line in self.activations.choices():
            log.line(line)
        if self.step:
            log.line(f"resumed at step {self.step} of {recipe.train.steps}")

    def _speed(self, metrics: dict[str, Any], phases: dict[str, float]) -> dict[str, Any]:
        work: Work = metrics.pop("work")
        return {
            **metrics,
            **work.speed(phases, self.ranks, self.peak),
            "replaced_clips": self.loader.replaced or None,
            "memory_gb": peak_memory_gb(self.device),
        }

    def _judge(
        self, losses: list[tuple[Batch, Tensor, Tensor]], norm: float
    ) -> tuple[float, dict[str, float], float | None]:
        """Mean loss, that of each bin of timesteps, its score; ends the run where they are bad."""
        mean = torch.stack([loss_B.mean() for _, _, loss_B in losses]).mean()
        t_B = torch.cat([t_B for _, t_B, _ in losses])
        loss_B = torch.cat([loss_B for _, _, loss_B in losses])
        mean_loss, sums = self._reduce(mean, LossByTimestep.sums(t_B, loss_B))
        if not (math.isfinite(mean_loss) and math.isfinite(norm)):
            self._end_on_bad_loss(
                f"loss {mean_loss:g}, gradient norm {norm:g}, {blame(losses)}", places(losses)
            )
        by_timestep, score = self.by_timestep.update(sums)
        if self.spikes.seen(score, places(losses)):
            self._end_on_bad_loss(
                f"loss {mean_loss:g} lies {score:.1f} deviations above its timesteps' mean, and "
                f"did so in {self.recipe.recovery.spike_steps} steps in a row",
                self.spikes.batches,
            )
        return mean_loss, by_timestep, score

    def _end_on_bad_loss(self, what: str, batches: list[Position]) -> NoReturn:
        self._wait_for_checkpoint()
        advice = "try a lower optim.lr"
        if self.recipe.recovery.skip:
            self.skips.add(batches, write=self.world.rank == 0)
            advice = f"from there, {len(batches)} batch(es) will be skipped"
        newest = checkpoint.latest(self._checkpoints)
        raise UserError(
            f"step {self.step + 1}: {what}; nothing was updated. The newest checkpoint is "
            f"{newest or 'none'}; {advice}"
        )

    def _reduce(self, mean: Tensor, sums: Tensor) -> tuple[float, Tensor]:
        """The loss over all ranks, and what else they add up, in one exchange."""
        if self.world.world == 1:
            return float(mean), sums
        both = torch.cat((mean.double().view(1), sums.flatten()))
        dist.all_reduce(both, op=dist.ReduceOp.SUM)
        both /= self.world.world
        return float(both[0].float()), both[1:].view_as(sums) * self.ranks.data_world

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
