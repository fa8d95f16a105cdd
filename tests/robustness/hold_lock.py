"""Holds the lock of the run directory named first until it is killed; "held" says that it does.

    python hold_lock.py RUN_DIR [noflock]

Loads the lock's file by itself: the package around it imports torch, which takes seconds.
"""

import errno
import fcntl
import importlib.util
import sys
import time
from pathlib import Path

import vidgen

path = Path(vidgen.__file__).parent / "train" / "run_dir" / "lock.py"
spec = importlib.util.spec_from_file_location("lock", path)
assert spec
assert spec.loader
lock = importlib.util.module_from_spec(spec)
sys.modules["lock"] = lock
spec.loader.exec_module(lock)


def no_flock(file: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


if sys.argv[2:] == ["noflock"]:
    fcntl.flock = no_flock
lock.BEAT_S = 0.1
lock.lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
