"""`vidgen train` with a fault at the 25th step of rank 1, the first time it gets there."""

import os
import signal
import statistics
import sys
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidgen.cli.main import main
from vidgen.data.loader import Batch
from vidgen.train import Trainer
from vidgen.train.step_result import StepResult

fault, arguments = sys.argv[1], sys.argv[2:]
whole_step, whole_backward = Trainer.train_step, Trainer.forward_backward
whole_save = Trainer._save
first_start = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
here = fault != "none" and first_start and os.environ["RANK"] == "1"


took = deque([0.0], maxlen=10)  # seconds of the last steps


def step_with_fault(trainer: Trainer) -> Any:
    if here and trainer.step == 24:
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault == "raise":
            raise ValueError("injected")
    if here and trainer.step >= 24 and fault == "slow":
        time.sleep(max(3.0, 30 * statistics.median(took)))  # on a busy machine too
        return whole_step(trainer)
    start = time.monotonic()
    result = whole_step(trainer)
    took.append(time.monotonic() - start)
    return result


def save_with_fault(trainer: Trainer) -> Any:
    if here and trainer.step == 24 and fault == "storage":
        time.sleep(40)
    return whole_save(trainer)


def backward_with_fault(trainer: Trainer, batch: Batch) -> StepResult:
    result = whole_backward(trainer, batch)
    if here and trainer.step == 24 and fault == "nan":
        return replace(result, loss_B=result.loss_B * float("nan"))
    return result


Trainer._save = save_with_fault  # type: ignore[method-assign]
Trainer.train_step = step_with_fault  # type: ignore[method-assign]
Trainer.forward_backward = backward_with_fault  # type: ignore[method-assign]
assert Path(arguments[0]).exists()
sys.exit(main(["train", *arguments]))
