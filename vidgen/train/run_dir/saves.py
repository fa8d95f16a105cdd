"""The checkpoints of a run while it trains: started, watched, tried again, given up."""

import errno
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vidgen.errors import UserError
from vidgen.recipe.schema import CheckpointConfig
from vidgen.runtime import checkpoint, files
from vidgen.runtime.parallel import flight_recorder

LAST_SAVED = "last_saved.json"  # in the run directory: the step of the newest checkpoint
FIRST_RETRY_S, LONGEST_RETRY_S = 2.0, 300.0  # the delay doubles
LAST_TRIES = 3  # of the checkpoint that ends a run
STALL_S = 60.0  # after which a save under way is reported
_MOST_STUCK = 2  # saves whose memory is lost, because the storage may still read it


class Status(NamedTuple):
    """What one rank knows; the sums over ranks decide, so that all ranks do the same."""

    done: bool = False  # the save under way has ended
    failed: bool = False
    retry: bool = False  # it is time for the next try; rank 0's clock counts


class Saves:
    """A save that fails is reported at once and tried again with the state of that later step.

    The run ends only when going on would leave more than `checkpoint.max_unsaved` steps unsaved.
    """

    def __init__(
        self,
        begin: Callable[[], checkpoint.Saving],
        config: CheckpointConfig,
        run_dir: Path,
        *,
        rank: int,
        step: int,
        check: Callable[[], None],
    ) -> None:
        """`begin` starts to save the state; `step` is the last saved one, or 0; `check` raises on
        rank 0 where the run directory is another one now."""
        self._begin, self._rank, self._check = begin, rank, check
        self.report: Callable[[str], None] = print  # a line for the user
        self._run_dir = run_dir
        self._limit = config.max_unsaved or 2 * config.every
        self.committed = step
        """The newest step that has a checkpoint, as far as all ranks know."""
        self._saving: checkpoint.Saving | None = None
        self._step = step  # that is being saved
        self._began = 0.0
        self._stall_reported = False
        self._error: Exception | None = None  # of the last try; None once one has succeeded
        self.summary: str | None = None
        """Of the newest checkpoint that this trainer wrote."""
        self._tries = self._stuck = 0
        self._retry_at = 0.0

    def status(self, step: int) -> Status:
        """Of this rank, after a step. Where more steps would risk too much, a save under way is
        waited for."""
        if step - self.committed >= self._limit:
            self.wait()
        saving = self._saving
        if saving is None:
            due = self._error is not None and time.monotonic() >= self._retry_at
            return Status(retry=due and self._rank == 0)
        if not saving.done():
            self._watch_stall()
            return Status()
        return Status(done=True, failed=saving.failure() is not None)

    def risks_too_much(self, step: int) -> bool:
        """Whether saving has failed and going on may lose more than the allowed steps."""
        return self._error is not None and step - self.committed >= self._limit

    def save(self, step: int, *, must_succeed: bool) -> None:
        """Start to save this step's state. `must_succeed`: it is saved when this returns."""
        if self._saving is not None:
            # Its memory is needed. Every rank gets the same outcome: a save fails on all or none.
            self._wait()
            self.settle(self._saving.failure() is not None)
        self._step, self._began, self._stall_reported = step, time.monotonic(), False
        self._saving = self._begin()
        if must_succeed:
            self._finish(step)

    def wait(self) -> None:
        """At the end: until the save under way has ended, however it does."""
        if self._saving is not None and not self._saving.done():
            flight_recorder.note("wait for the checkpoint", storage=True)
            self._wait()

    def _wait(self) -> None:
        """Within the phase of a save, which all ranks record alike."""
        while self._saving is not None and not self._saving.done():
            self._watch_stall()
            time.sleep(0.01)

    def settle(self, failed: bool) -> None:
        """The save under way has ended on all ranks, and `failed` on any."""
        saving, self._saving = self._saving, None
        if saving is None:
            return
        error = saving.failure()
        if not failed:
            self.committed, self._error, self._tries = self._step, None, 0
            self.summary = f"checkpoint {saving.path}: {saving.summary}"
            if self._rank == 0:
                self._record()
            return
        error = error or RuntimeError("another rank could not end it")
        if not isinstance(error, OSError | UserError | RuntimeError):
            raise error  # no fault of the storage
        if isinstance(error, OSError) and error.errno == errno.ETIMEDOUT:
            self._stuck += 1
            if self._stuck >= _MOST_STUCK:
                raise error
        delay = min(FIRST_RETRY_S * 2**self._tries, LONGEST_RETRY_S)
        self._tries += 1
        self._error, self._retry_at = error, time.monotonic() + delay
        self.report(
            f"the checkpoint of step {self._step} could not be written: {error}; the next try is "
            f"in {delay:.0f} s; step {self.committed} is the newest saved, and without another "
            f"the run ends at step {self.committed + self._limit} (checkpoint.max_unsaved)"
        )

    def _finish(self, step: int) -> None:
        """Wait for the save under way, and try again where it fails; raises after the last try."""
        for attempt in range(LAST_TRIES):
            self._wait()
            if self._saving is not None:
                self.settle(self._saving.failure() is not None)
            if self._error is None:
                return
            if attempt + 1 < LAST_TRIES:
                flight_recorder.note("wait to save again", storage=True)
                time.sleep(FIRST_RETRY_S * 2**attempt)
                self.save(step, must_succeed=False)
        assert self._error is not None
        raise self._error

    def _watch_stall(self) -> None:
        seconds = time.monotonic() - self._began
        if seconds > STALL_S and not self._stall_reported:
            self._stall_reported = True
            self.report(
                f"the checkpoint of step {self._step} has been under way for {seconds:.0f} s: the "
                "storage is slow or does not answer"
            )

    def _record(self) -> None:
        """So that a run whose checkpoints are gone is told from one that never had any."""
        try:
            self._check()
            text = json.dumps({"step": self.committed})
            files.write_text(self._run_dir / LAST_SAVED, text, durable=False)
        except UserError as error:
            self.report(str(error))
