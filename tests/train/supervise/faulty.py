"""`vidgen train` with a fault at the 25th step of rank 1, the first time it gets there."""

import os
import signal
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch

from vidgen.cli.main import main
from vidgen.train import Trainer
from vidgen.train.examples import Example

fault, arguments = sys.argv[1], sys.argv[2:]
whole_step, whole_losses = Trainer._train_step, Trainer.sample_losses
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


def losses_with_fault(trainer: Trainer, example: Example) -> torch.Tensor:
    losses = whole_losses(trainer, example)
    return losses * float("nan") if here and fault == "nan" and trainer.step == 24 else losses


Trainer._train_step = step_with_fault  # type: ignore[method-assign]
Trainer.sample_losses = losses_with_fault  # type: ignore[method-assign]
assert Path(arguments[0]).exists()
sys.exit(main(["train", *arguments]))
