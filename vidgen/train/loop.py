"""What every training run does: steps, a line of metrics each, checkpoints, stopping, recovery."""

import shlex
import signal
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vidgen.config import to_dict
from vidgen.data.loader import Batch, Loader
from vidgen.errors import UserError
from vidgen.recipe.autoencoder import AutoencoderRecipe
from vidgen.recipe.reader import dump_yaml, read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.runtime import checkpoint, files, parallel
from vidgen.runtime.observe.memory import peak_memory_gb
from vidgen.runtime.observe.mfu import Peak
from vidgen.runtime.observe.mfu import peak as device_peak
from vidgen.runtime.observe.timer import StepTimer
from vidgen.runtime.observe.trace import StepTrace
from vidgen.runtime.parallel import flight_recorder
from vidgen.train.garbage import collected_between_steps
from vidgen.train.initialization import compute_dtype, launch_command
from vidgen.train.optim.optimizer import (
    EMA,
    build_optimizer,
    check_states_fit,
    learning_rate,
    set_learning_rate,
    state_tensors,
    update_weights_and_ema,
)
from vidgen.train.report.log import RunLog
from vidgen.train.run_dir import lock, start
from vidgen.train.run_dir.folder import make_run_dir, set_old_run_aside
from vidgen.train.run_dir.saves import Saves
from vidgen.train.step_result import StepResult, reduce_losses, throughput
from vidgen.train.supervise import run_facts
from vidgen.train.supervise.agreement import Agreement
from vidgen.train.supervise.loss_check import BadLoss, LossMonitor
from vidgen.train.supervise.recovery import SkipList
from vidgen.train.supervise.stop_signals import StopSignals
from vidgen.train.supervise.supervision import Supervision
from vidgen.train.supervise.watchdog import Settings

Tensors = dict[str, dict[str, Tensor]]  # group, name
AnyRecipe = TypeVar("AnyRecipe", Recipe, AutoencoderRecipe)


class TrainingLoop(ABC, Generic[AnyRecipe]):
    """Trains what a recipe describes; resumes from the newest checkpoint of its run directory.

    A subclass opens the data, builds the model, and turns one batch into gradients.
    """

    FIXED_ON_RESUME: ClassVar[tuple[str, ...]]
    """Sections of the recipe that must not change when a run resumes."""
    LOSS_BY_BIN: ClassVar[str]
    """Name in metrics.jsonl of the losses that are compared with their usual size."""

    def __init__(
        self, recipe: AnyRecipe, *, fresh: bool = False, from_step: int | None = None
    ) -> None:
        """Resumes from the newest checkpoint or that of `from_step`; `fresh` starts at step 0."""
        self.recipe: AnyRecipe = recipe
        self.run_dir = Path(recipe.run_dir)
        timeout_s, storage_s = recipe.parallel.timeout_s, recipe.recovery.storage_timeout_s
        # Collectives last longer than any wait that supervision allows, so that it names the rank.
        self.world = parallel.start(
            recipe.train.device,
            timeout_s=timeout_s,
            collective_timeout_s=max(timeout_s, storage_s) + 60,
        )
        self.device = self.world.device
        self.dtype = compute_dtype(recipe.train.dtype, self.device)
        self.agreement = Agreement(self.world)
        self._lock: lock.RunLock | None = None  # on rank 0
        self._unlock: weakref.finalize[..., Any] | None = None
        # Before the first collective, which another recipe on one rank may make hang.
        self._check_ranks_agree(run_facts.of_rank(recipe, {"--fresh": fresh, "--from": from_step}))
        # Before the model: a wrong manifest should not wait for 12 G parameters.
        self.loader = self.agreement.together(self.open_data)
        self._check_ranks_agree(run_facts.of_manifest(self.loader.manifest))
        self._lock_run_dir()
        self.step = 0
        self.loss_monitor = LossMonitor(recipe.recovery, self.LOSS_BY_BIN)
        self.timer = StepTimer(self.device)
        every = recipe.checkpoint.every
        found = self.agreement.from_first(
            lambda: start.candidates(self.run_dir, fresh=fresh, step=from_step, every=every)
        )
        self.model = self.build_model(resuming=bool(found))
        self.named = dict(self.model.named_parameters())
        self.ema = EMA(self.named, recipe.train.ema_decay) if recipe.train.ema_decay else None
        self.optimizer = build_optimizer(self.named.values(), recipe.optim)
        held = (tensor for group in self.tensors().values() for tensor in group.values())
        checkpoint.reserve(sum(map(checkpoint.held_bytes, held)))
        if found:
            self._resume(found)
        elif fresh:
            keep = recipe.data.manifest
            self.agreement.from_first(lambda: set_old_run_aside(self.run_dir, keep=keep))
        self.skip_list = SkipList(self.run_dir, load=not fresh)
        self._saves = Saves(
            lambda: self._save(),
            recipe.checkpoint,
            self.run_dir,
            rank=self.world.rank,
            step=self.step,
            check=self._check_run_dir,
        )

    def _check_ranks_agree(self, facts: run_facts.Facts) -> None:
        self.agreement.decide(facts, run_facts.check_equal)

    def _lock_run_dir(self) -> None:
        """For all ranks by rank 0; until the trainer is closed, or forgotten."""

        def take() -> str | None:
            make_run_dir(self.run_dir)
            self._lock = lock.lock(self.run_dir)
            self._unlock = weakref.finalize(self, lock.unlock, self._lock)
            return self._lock.note

        self._notes = [note] if (note := self.agreement.from_first(take)) else []

    # What a subclass provides --------------------------------------------------------------------

    @abstractmethod
    def open_data(self) -> Loader:
        """The loader, and whatever must fit its batches."""

    @abstractmethod
    def build_model(self, resuming: bool) -> nn.Module:
        """With its initial weights, unless a checkpoint's are loaded next."""

    @abstractmethod
    def forward_backward(self, batch: Batch) -> StepResult:
        """Adds one micro-batch's share to the gradients."""

    @abstractmethod
    def validate(self, log: RunLog) -> None: ...

    def finish_gradients(self) -> None:
        """After the last backward of a step."""

    def update_others(self, lr: float) -> None:
        """Step the optimizers of what is trained beside the model."""

    def close(self) -> None:
        self.loader.close()
        self.world.close()
        if self._unlock is not None:
            self._unlock()

    @property
    def data_world(self) -> int:
        """Ranks, or groups of them, that have clips of their own."""
        return self.world.world

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.named.values())

    @cached_property
    def peak(self) -> Peak:
        """What MFU divides by."""
        return device_peak(self.device, self.dtype)

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    # The loop -----------------------------------------------------------------------------------

    def run(self, stop_after: int | None = None, *, profile: tuple[int, int] | None = None) -> int:
        """Train to the recipe's last step, or to `stop_after`; returns the steps completed.

        `profile` names a first and a last step whose trace goes to the run directory.
        """
        last = min(self.recipe.train.steps, stop_after or sys.maxsize)
        self._check_ranks_agree({"--stop-after": str(stop_after), "--profile": str(profile)})
        with (
            self._supervision() as supervision,
            self._closing(),
            collected_between_steps() as collect_garbage,
            self._open_log() as log,
            StopSignals() as stop,
            self._trace(profile) as trace,
        ):
            self._saves.report = log.line
            self.log_start(log)
            if self.step == 0:
                self._validate(log)
            self.timer.restart()
            stopping = False
            while self.step < last and not stopping:
                with trace.step(self.step + 1):
                    metrics = self.train_step()
                supervision.completed(self.step, metrics["ms"], metrics["bucket"])
                # Before the save, whose time counts in the next step: a step that has a
                # checkpoint has its line of metrics too, whenever a crash comes.
                log.step(self.step, **metrics)
                with self.phase("validate"):
                    self._validate(log)
                stopping = self._end_step(stop.received, last)
                collect_garbage(self.step)
            self._log_end(log)
            if stopping:
                self._exit_on_signal(log, stop.received or signal.SIGTERM)
        return self.step

    def train_step(self) -> dict[str, Any]:
        """One optimizer step over `accumulate` micro-batches; returns its line of metrics."""
        recipe, accumulate = self.recipe, self.recipe.train.accumulate
        lr = learning_rate(recipe.optim, self.step, recipe.train.steps)
        results: list[StepResult] = []
        for micro_step in range(accumulate):
            with self.phase("data", storage=True):
                if micro_step == 0:
                    self.skip_list.advance(self.loader)
                batch = next(self.loader)
            parallel.synchronise_gradients(self.model, micro_step + 1 == accumulate)
            results.append(self.forward_backward(batch))
        with self.phase("optimizer"):
            self.finish_gradients()
            norm = float(parallel.clip_grad_norm(self.named.values(), recipe.optim.clip))
            losses = reduce_losses(results, self.world.world, self.data_world)
            verdict = self.loss_monitor.check(losses, norm, results)
            if verdict.bad is not None:
                self._end_run_on_bad_loss(verdict.bad)
            set_learning_rate(self.optimizer, lr)
            update_weights_and_ema(self.optimizer, self.ema, self.step + 1)
            self.optimizer.zero_grad(set_to_none=True)
            self.update_others(lr)
            self.step += 1
        times = self.timer.lap()
        return {
            **verdict.figures,
            "grad_norm": norm,
            "lr": lr,
            **throughput(results, times, self.peak, self.world.world, self.data_world),
            "replaced_clips": self.loader.replaced or None,
            "memory_gb": peak_memory_gb(self.device),
        }

    @contextmanager
    def phase(self, name: str, *, storage: bool = False) -> Iterator[None]:
        """Names what runs next: for the step's times, a profile, and ranks waiting for this one.

        The watchdog allows more time for a phase that waits for `storage`.
        """
        flight_recorder.note(name, step=self.step + 1, storage=storage)
        with self.timer.phase(name):
            yield
        if storage:
            flight_recorder.note(f"after {name}")

    def _supervision(self) -> Supervision:
        recovery = self.recipe.recovery
        settings = Settings(
            timeout_s=self.recipe.parallel.timeout_s,
            storage_timeout_s=recovery.storage_timeout_s,
            slow_factor=recovery.slow_factor,
            slow_steps=recovery.slow_steps,
        )
        return Supervision(self.world, self.run_dir / "failures", settings)

    def _validate(self, log: RunLog) -> None:
        every = self.recipe.validate.every
        if every is not None and self.step % every == 0:
            self.validate(log)

    def _end_step(self, received: signal.Signals | None, last: int) -> bool:
        """What all ranks decide together after a step; returns whether the run stops here."""
        mine = received is not None, len(self.loader.bad_clips), *self._saves.status(self.step)
        stop, bad_clips, done, failed, retry = self.world.sum(mine)
        if bad_clips > self.recipe.data.bad_clip_limit:
            self._raise_too_many_bad_clips()
        ending = self.step == last or stop > 0
        if done == self.world.world:
            self._saves.settle(failed > 0)
        due = self.step % self.recipe.checkpoint.every == 0 or retry > 0
        must = ending or self._saves.risks_too_much(self.step)
        if due or must:
            with self.phase("checkpoint", storage=True):
                self._saves.save(self.step, must_succeed=must)
        return stop > 0

    # Ending a run --------------------------------------------------------------------------------

    def _end_run_on_bad_loss(self, bad: BadLoss) -> NoReturn:
        """Nothing is updated; under torchrun the run restarts from its newest checkpoint."""
        self._saves.wait()
        advice = "try a lower optim.lr"
        if self.recipe.recovery.skip:
            self.skip_list.add(bad.positions, write=self.world.rank == 0)
            advice = f"from there, {len(bad.positions)} batch(es) will be skipped"
        newest = checkpoint.latest(self._checkpoints)
        raise UserError(
            f"step {self.step + 1}: {bad.reason}; nothing was updated. The newest checkpoint is "
            f"{newest or 'none'}; {advice}"
        )

    def _raise_too_many_bad_clips(self) -> None:
        """One rank's own are checked with every batch; these are those of all ranks together."""
        everyones: list[Any] = [self.loader.bad_clips]
        if self.world.world > 1:
            everyones = [None] * self.world.world
            dist.all_gather_object(everyones, self.loader.bad_clips)
        self.loader.check_bad_clips(dict(sorted(x for one in everyones for x in one.items())))

    def _exit_on_signal(self, log: RunLog, received: signal.Signals) -> NoReturn:
        # The recipe as it was run, overrides and all: no --fresh, which would set the run aside.
        log.line(
            f"stopped by {received.name} after step {self.step}; everything is saved. To resume: "
            f"{launch_command(self.world.world)} {shlex.quote(str(self.run_dir / 'recipe.yaml'))}"
        )
        log.close()
        if received is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + received)

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

    def to_checkpoint_layout(self, tensors: Tensors) -> Tensors:
        """As they are stored, whatever divides them over ranks here."""
        return tensors

    def from_checkpoint_layout(self, tensors: Tensors, loaded: Tensors) -> None:
        """Copy what was loaded into `to_checkpoint_layout`'s tensors back into these."""

    def _save(self) -> checkpoint.Saving:
        return checkpoint.save(
            self._checkpoints,
            self.step,
            self.to_checkpoint_layout(self.tensors()),
            {
                "recipe": to_dict(self.recipe),
                "environment": run_facts.of_resume(self.device, self.world.world),
                "loader": self.loader.state_dict(),
                "trainer": {"step": self.step, self.LOSS_BY_BIN: self.loss_monitor.state_dict()},
            },
            keep_last=self.recipe.checkpoint.keep_last,
            keep_every=self.recipe.checkpoint.keep_every,
            timeout_s=self.recipe.recovery.storage_timeout_s,
            guard=self._check_run_dir,
        )

    def _resume(self, paths: list[str]) -> None:
        """From the first of these checkpoints that every rank finds undamaged."""
        tensors = self.tensors()
        loaded = self.to_checkpoint_layout(tensors)
        objects, lines = start.first_undamaged(
            self.run_dir, paths, lambda path: self._load(path, loaded), self.agreement
        )
        now = run_facts.of_resume(self.device, self.world.world)
        if changed := run_facts.changes(objects.get("environment", {}), now):
            lines.append(changed)
        self._notes += lines
        self.from_checkpoint_layout(tensors, loaded)
        self.loader.load_state_dict(objects["loader"])
        self.step = objects["trainer"]["step"]
        if self.LOSS_BY_BIN in objects["trainer"]:  # older checkpoints have none
            self.loss_monitor.load_state_dict(objects["trainer"][self.LOSS_BY_BIN])

    def _load(self, path: Path, tensors: Tensors) -> dict[str, Any]:
        """Fill the tensors, and return the objects; refuses another model."""
        then = read_recipe(start.stored_recipe(path), [], type(self.recipe))
        start.check_unchanged(path, then, self.recipe, self.FIXED_ON_RESUME)
        check_states_fit(path, then.optim, self.recipe.optim)
        return checkpoint.load(path, tensors)

    # Start and end ------------------------------------------------------------------------------

    def _check_run_dir(self) -> None:
        if self._lock is not None:
            self._lock.check()

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

    def log_start(self, log: RunLog) -> None:
        recipe = self.recipe
        if self.world.rank == 0:
            files.write_text(self.run_dir / "recipe.yaml", dump_yaml(recipe))
        log.line(
            f"{recipe.name}: {self.parameter_count / 1e6:,.1f} M parameters on "
            f"{self.world.world} x {self.device.type} in {str(self.dtype).removeprefix('torch.')}; "
            f"MFU of {self.peak}; run directory {self.run_dir}"
        )
        for note in self._notes:
            log.line(note)
        if self.step:
            log.line(f"resumed at step {self.step} of {recipe.train.steps}")

    def _log_end(self, log: RunLog) -> None:
        if bad := self.loader.bad_clips:
            log.line(f"{len(bad)} clip(s) could not be read and were skipped")
        if self.recipe.data.latents is not None:
            log.line(f"latents: cached {self.loader.cached} / computed {self.loader.computed}")
        if self._saves.summary is not None:
            log.line(self._saves.summary)

    @contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._saves.wait()  # its ranks communicate until then
            self.close()
