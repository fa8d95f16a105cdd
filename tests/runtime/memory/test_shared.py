import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vidgen.runtime.memory import Arena, ArenaHandle, SharedArena

PIECE = 5000


def fill(handle: ArenaHandle, offset: int, value: int) -> None:
    with SharedArena.open(handle) as arena:
        piece = arena.numpy(offset, (10, PIECE // 10))
        piece[3:] = value
        del piece


def test_another_process_writes_into_a_lease() -> None:
    arena = Arena(4 * PIECE, pinned=False, shared=True)
    first, second = arena.lease(PIECE), arena.lease(PIECE)
    for lease in (first, second):
        lease.tensor((PIECE,)).zero_()
    process = multiprocessing.get_context("spawn").Process(
        target=fill, args=(arena.share(), second.offset, 7)
    )
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert first.tensor((PIECE,)).sum() == 0
    seen = second.tensor((10, PIECE // 10))
    assert (seen[:3] == 0).all()
    assert (seen[3:] == 7).all()
    del seen
    first.give_back()
    second.give_back()
    arena.close()


def test_types_and_offsets() -> None:
    arena = Arena(1 << 16, pinned=False, shared=True)
    arena.lease(300).give_back()
    pad, lease = arena.lease(300), arena.lease(24)
    lease.tensor((2, 3), torch.float32).copy_(torch.arange(6.0).view(2, 3))
    handle = pickle.loads(pickle.dumps(arena.share()))
    with SharedArena.open(handle) as seen:
        found = seen.numpy(lease.offset, (2, 3), np.float32)
        assert found.tolist() == [[0, 1, 2], [3, 4, 5]]
        with pytest.raises(BufferError):
            seen.close()  # a view of it is there
        del found
    pad.give_back()
    lease.give_back()
    arena.close()


def test_an_arena_that_is_not_there_any_more() -> None:
    arena = Arena(4096, pinned=False, shared=True)
    handle = arena.share()
    arena.close()
    with pytest.raises(RuntimeError, match=rf"arena of process {os.getpid()}"):
        SharedArena.open(handle)
    with pytest.raises(RuntimeError, match="has ended"):
        SharedArena.open(ArenaHandle(2**22 - 1, 3, 4096, (0, 0)))
    with open(__file__) as other, pytest.raises(RuntimeError, match="was closed"):
        SharedArena.open(ArenaHandle(os.getpid(), other.fileno(), 4096, (1, 2)))


def test_only_a_shared_arena_can_be_shared() -> None:
    with pytest.raises(ValueError, match="make it with shared=True"):
        Arena(4096, pinned=False).share()


CHILD = """
import sys, time
from vidgen.runtime.memory import Arena
arena = Arena(64 << 20, pinned=False, shared=True, name="killed")
lease = arena.lease(1 << 20)
lease.tensor((1 << 20,)).fill_(9)
print("ready", flush=True)
time.sleep(600)
"""


def test_nothing_is_left_after_a_kill(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    mapped = Path(f"/proc/{process.pid}/maps").read_text()
    assert "memfd:killed" in mapped
    assert set(os.listdir("/dev/shm")) <= before
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and anyone_maps("memfd:killed"):
        time.sleep(0.01)
    assert not anyone_maps("memfd:killed")
    assert set(os.listdir("/dev/shm")) <= before


def anyone_maps(name: str) -> bool:
    for process in Path("/proc").glob("[0-9]*/maps"):
        try:
            if name in process.read_text():
                return True
        except OSError:
            continue  # gone meanwhile, or not ours to see
    return False
