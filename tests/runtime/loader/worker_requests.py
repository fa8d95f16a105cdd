"""Requests for worker processes to run; in a module of their own, which they can import."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Fill:
    value: int

    def __call__(self, out: np.ndarray) -> int:
        time.sleep(self.value % 5 * 0.0004)
        out[:] = self.value % 256
        return os.getpid()


@dataclass(frozen=True)
class Hang:
    def __call__(self, out: np.ndarray) -> None:
        out[:] = 77
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        while True:
            time.sleep(60)


@dataclass(frozen=True)
class Die:
    """As often as the file has lines left."""

    times: Path

    def __call__(self, out: np.ndarray) -> str:
        left = int(self.times.read_text())
        if left:
            self.times.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGSEGV)
        out[:] = 5
        return "lived"


@dataclass(frozen=True)
class Raise:
    def __call__(self, out: np.ndarray) -> None:
        raise KeyError("sample two")


@dataclass(frozen=True)
class Modules:
    def __call__(self, out: np.ndarray) -> list[str]:
        import sys

        return sorted(sys.modules)
