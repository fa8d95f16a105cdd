"""What every training run does: steps, a line of metrics for each, checkpoints, stops, recovery."""

import math
import shlex
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vidgen.config import to_dict
from vidgen.data.loader import Batch, Loader
from vidgen.errors import UserError
from vidgen.recipe.autoencoder import AutoencoderRecipe
from vidgen.recipe.reader import diff, dump_yaml, read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.runtime import checkpoint, parallel
from vidgen.runtime.observe.memory import peak_memory_gb
from vidgen.runtime.observe.mfu import peak
from vidgen.runtime.observe.timer import StepTimer
from vidgen.runtime.observe.trace import StepTrace
from vidgen.runtime.parallel import flight
from vidgen.train.garbage import rare_collections
from vidgen.train.initialization import compute_dtype, launch_command
from vidgen.train.optim.optimizer import (
    EMA,
    build_optimizer,
    check_states_fit,
    learning_rate,
    set_learning_rate,
    state_tensors,
)
from vidgen.train.report.log import RunLog
from vidgen.train.run_dir import make_run_dir, set_old_run_aside
from vidgen.train.step_result import Learned, blame, places, speed
from vidgen.train.supervise.loss_spikes import LossByTimestep, Spikes
from vidgen.train.supervise.recovery import Position, Recovery, Skips
from vidgen.train.supervise.stop_signals import StopSignals

Tensors = dict[str, dict[str, Tensor]]  # group, name
AnyRecipe = TypeVar("AnyRecipe", Recipe, AutoencoderRecipe)


class TrainingLoop(ABC, Generic[AnyRecipe]):
    """Trains what a recipe describes; goes on from the newest checkpoint of its run directory.

    A subclass opens the data, builds the model, and says what is learned from one batch.
    """

    SAME: ClassVar[tuple[str, ...]]
    """Parts of the recipe that a resumed run must have as they were."""
    SCORE: ClassVar[str]
    """The losses that are held against their usual size, in metrics.jsonl."""

    def __init__(self, recipe: AnyRecipe, *, fresh: bool = False) -> None:
        self.recipe: AnyRecipe = recipe
        self.run_dir = Path(recipe.run_dir)
        self.world = parallel.start(recipe.train.device, timeout_s=recipe.parallel.timeout_s)
        self.device = self.world.device
        self.dtype = compute_dtype(recipe.train.dtype, self.device)
        # Ahead of the model: a wrong manifest should not wait for 12 G parameters.
        self.loader = self.open_data()
        make_run_dir(self.run_dir)
        self.step = 0
        self.usual, self.spikes = LossByTimestep(), Spikes(recipe.recovery)
        self.timer = StepTimer(self.device)
        self._saving: checkpoint.Saving | None = None
        newest = None if fresh else checkpoint.latest(self._checkpoints)
        self.model = self.build_model(resuming=newest is not None)
        self.named = dict(self.model.named_parameters())
        self.ema = EMA(self.named, recipe.train.ema_decay) if recipe.train.ema_decay else None
        self.optimizer = build_optimizer(self.named.values(), recipe.optim, self.ema)
        held = (tensor for group in self.tensors().values() for tensor in group.values())
        checkpoint.reserve(sum(map(checkpoint.held_bytes, held)))
        if newest is not None:
            self._resume(newest)
        elif fresh and self.world.rank == 0:
            set_old_run_aside(self.run_dir, keep=recipe.data.manifest)
        self.skips = Skips(self.run_dir, known=not fresh)

    # What a subclass says ------------------------------------------------------------------------

    @abstractmethod
    def open_data(self) -> Loader:
        """The loader, and whatever must fit its batches."""

    @abstractmethod
    def build_model(self, resuming: bool) -> nn.Module:
        """With its first weights, unless a checkpoint's are about to follow."""

    @abstractmethod
    def learn(self, batch: Batch) -> Learned:
        """One batch forward and backward; of a step's batches, each counts its share."""

    @abstractmethod
    def validate(self, log: RunLog) -> None: ...

    def finish_gradients(self) -> None:
        """After the last backward of a step."""

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def close(self) -> None:
        self.loader.close()
        self.world.close()

    @property
    def data_world(self) -> int:
        """Ranks, or groups of them, that have clips of their own."""
        return self.world.world

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.named.values())

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    # The loop -----------------------------------------------------------------------------------

    def run(self, stop_after: int | None = None, *, profile: tuple[int, int] | None = None) -> int:
        """Train to the recipe's last step, or to `stop_after`; returns the steps completed.

        `profile` names a first and a last step whose trace goes to the run directory.
        """
        recipe, last = self.recipe, min(self.recipe.train.steps, stop_after or sys.maxsize)
        with (
            Recovery(
                self.run_dir, self.world, recipe.recovery, recipe.parallel.timeout_s
            ) as recovery,
            self.world.watch(recovery.failed),
            self._closing(),
            rare_collections() as collect,
            self._open_log() as log,
            StopSignals() as stop,
            self._trace(profile) as trace,
        ):
            self.introduce(log)
            if self.step == 0:
                self._validate(log)
            self.timer.restart()
            stopping = False
            while self.step < last and not stopping:
                with trace.step(self.step + 1):
                    record = self._train_step()
                recovery.completed(self.step, record["ms"], record["bucket"])
                # Before the save, whose time counts in the step after: a step that has a
                # checkpoint has its line of metrics too, whenever a crash comes.
                log.step(self.step, **record)
                with self.phase("validate"):
                    self._validate(log)
                stopping = self._agree(stop.received is not None)
                if self.step % recipe.checkpoint.every == 0 or self.step == last or stopping:
                    with self.phase("checkpoint"):
                        self._saving = self._save()
                collect(self.step)
            self._conclude(log)
            if stopping:
                self._end_early(log, stop.received or signal.SIGTERM)
        return self.step

    def _train_step(self) -> dict[str, Any]:
        recipe = self.recipe
        lr = learning_rate(recipe.optim, self.step, recipe.train.steps)
        set_learning_rate(self.optimizer, lr)
        learned: list[Learned] = []
        for micro in range(recipe.train.accumulate):
            parallel.synchronise_gradients(self.model, micro + 1 == recipe.train.accumulate)
            with self.phase("data"):
                batch = self.skips.next(self.loader)
            learned.append(self.learn(batch))
        with self.phase("optimizer"):
            self.finish_gradients()
            norm = float(parallel.clip_grad_norm(self.named.values(), recipe.optim.clip))
            metrics = self._judge(learned, norm)
            self.update()
            self.step += 1
            if self.ema is not None:
                self.ema.update(self.step)
        return {
            **metrics,
            "grad_norm": norm,
            "lr": lr,
            **speed(learned, self.timer.lap(), self.peak, self.world.world, self.data_world),
            "replaced_clips": self.loader.replaced or None,
            "memory_gb": peak_memory_gb(self.device),
        }

    def phase(self, name: str) -> AbstractContextManager[None]:
        """What is done next, for the step's times, a profile, and whoever waits for this rank."""
        flight.note(name, step=self.step + 1)
        return self.timer.phase(name)

    def _validate(self, log: RunLog) -> None:
        every = self.recipe.validate.every
        if every is not None and self.step % every == 0:
            self.validate(log)

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

    # Whether the loss is what it should be -------------------------------------------------------

    def _judge(self, learned: list[Learned], norm: float) -> dict[str, Any]:
        """Mean loss, that of each bin, its score, further figures; ends the run where it is bad."""
        loss_B = torch.cat([each.loss_B for each in learned])
        sums = LossByTimestep.sums(torch.cat([each.bin_B for each in learned]), loss_B)
        means = {"loss": torch.stack([each.loss_B.mean() for each in learned]).mean()}
        for name in learned[0].figures:
            means[name] = torch.stack([each.figures[name] for each in learned]).mean()
        flat = torch.cat((torch.stack(list(means.values())).double(), sums.flatten()))
        if self.world.world > 1:  # all of it in one exchange
            dist.all_reduce(flat, op=dist.ReduceOp.SUM)
            flat /= self.world.world
        figures = dict(zip(means, flat.float().tolist(), strict=False))
        loss, sums = figures["loss"], flat[len(means) :].view_as(sums) * self.data_world
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._end_on_bad_loss(
                f"loss {loss:g}, gradient norm {norm:g}, {blame(learned)}", places(learned)
            )
        by_bin, score = self.usual.update(sums)
        if self.spikes.seen(score, places(learned)):
            self._end_on_bad_loss(
                f"loss {loss:g} lies {score:.1f} deviations above what is usual, and "
                f"did so in {self.recipe.recovery.spike_steps} steps in a row",
                self.spikes.batches,
            )
        return {**figures, self.SCORE: by_bin, f"{self.SCORE}_z": score}

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

    # State --------------------------------------------------------------------------------------

    @property
    def _checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def tensors(self) -> Tensors:
        """All that a checkpoint holds, group by group."""
        groups: Tensors = {
            "model": {name: p.detach() for name, p in self.named.items()},
            "optim": state_tensors(self.named, self.optimizer),
        }
        if self.ema is not None:
            groups["ema"] = self.ema.tensors
        return groups

    def stored(self, tensors: Tensors) -> Tensors:
        """As they lie in a checkpoint."""
        return tensors

    def take_back(self, tensors: Tensors, stored: Tensors) -> None:
        """What was loaded into `stored`."""

    def _save(self) -> checkpoint.Saving:
        return checkpoint.save(
            self._checkpoints,
            self.step,
            self.stored(self.tensors()),
            {
                "recipe": to_dict(self.recipe),
                "loader": self.loader.state_dict(),
                "trainer": {"step": self.step, self.SCORE: self.usual.state_dict()},
            },
            keep_last=self.recipe.checkpoint.keep_last,
            keep_every=self.recipe.checkpoint.keep_every,
        )

    def _resume(self, newest: Path) -> None:
        then = read_recipe(checkpoint.read_objects(newest)["recipe"], [], type(self.recipe))
        for part in self.SAME:
            changed = diff(getattr(then, part), getattr(self.recipe, part))
            if changed:
                raise UserError(
                    f"{newest} was trained with another {part} ({part}.{changed[0]}); resume with "
                    "the recipe as it was, or pass --fresh to begin a new run beside it"
                )
        check_states_fit(newest, then.optim, self.recipe.optim)
        tensors = self.tensors()
        stored = self.stored(tensors)
        objects = checkpoint.load(newest, stored)
        self.take_back(tensors, stored)
        self.loader.load_state_dict(objects["loader"])
        self.step = objects["trainer"]["step"]
        if self.SCORE in objects["trainer"]:  # older checkpoints have none: they begin again
            self.usual.load_state_dict(objects["trainer"][self.SCORE])

    def _wait_for_checkpoint(self) -> None:
        """Until the one being written is committed, or has failed."""
        while self._saving is not None and not self._saving.done():
            time.sleep(0.01)

    # Beginning and end --------------------------------------------------------------------------

    def _open_log(self) -> RunLog:
        return RunLog(
            self.run_dir,
            self.recipe.train.steps,
            resume_step=self.step,
            log_every=self.recipe.train.log_every,
            enabled=self.world.rank == 0,
            wandb=self.recipe.log.wandb,
            config=to_dict(self.recipe),
        )

    def _trace(self, steps: tuple[int, int] | None) -> StepTrace:
        first, last = steps or (0, -1)  # no step
        folder, rank = self.run_dir / "profiles", self.world.rank
        return StepTrace(folder, first=first, last=last, device=self.device, rank=rank)

    def introduce(self, log: RunLog) -> None:
        recipe = self.recipe
        if self.world.rank == 0:
            (self.run_dir / "recipe.yaml").write_text(dump_yaml(recipe))
        self.peak = peak(self.device, self.dtype)
        log.line(
            f"{recipe.name}: {self.parameter_count / 1e6:,.1f} M parameters on "
            f"{self.world.world} x {self.device.type} in {str(self.dtype).removeprefix('torch.')}; "
            f"MFU of {self.peak}; run directory {self.run_dir}"
        )
        if self.step:
            log.line(f"resumed at step {self.step} of {recipe.train.steps}")

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

    @contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._wait_for_checkpoint()  # until then its ranks talk to each other
            self.close()
