import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vidgen.runtime.memory import Arena

PIECE = 5000

WRITER = """
import mmap, sys
file, nbytes, offset, size = map(int, sys.argv[1:])
with mmap.mmap(file, nbytes) as memory:
    memory[offset : offset + size] = bytes([7]) * size
"""


def test_a_child_process_writes_into_a_lease() -> None:
    arena = Arena(4 * PIECE, pinned=False, shared=True)
    first, second, third = (arena.lease(PIECE) for _ in range(3))
    for lease in (first, second, third):
        lease.tensor((PIECE,)).zero_()
    file, nbytes = arena.share()
    numbers = map(str, (file, nbytes, second.offset + 1, PIECE - 2))
    subprocess.run([sys.executable, "-c", WRITER, *numbers], pass_fds=(file,), check=True)
    assert not first.tensor((PIECE,)).any()
    assert not third.tensor((PIECE,)).any()
    assert second.tensor((PIECE,)).tolist() == [0, *[7] * (PIECE - 2), 0]
    for lease in (first, second, third):
        lease.give_back()
    arena.close()


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
