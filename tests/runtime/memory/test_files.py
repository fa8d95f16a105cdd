import os
from pathlib import Path

import pytest
import torch

from vidgen.runtime.memory import HOST, Arena, FileLane, Lane, LeaseError, SimulatedEngine

ENGINES = [None, *(SimulatedEngine(seed, 1e-4) for seed in range(3))]


@pytest.mark.parametrize("engine", ENGINES)
def test_out_of_a_lane_into_a_file_and_back(tmp_path: Path, engine: SimulatedEngine | None) -> None:
    arena = Arena(1 << 16, pinned=False)
    files = FileLane(engine=engine)
    device = torch.arange(3000, dtype=torch.int32)
    down, up = arena.lease(device.nbytes), arena.lease(device.nbytes, align=4096)
    assert up.pointer % 4096 == 0
    out = Lane("cpu", engine=engine).copy(
        device, down.tensor((3000,), torch.int32), producer=HOST, lease=down
    )
    with open(tmp_path / "file", "w+b") as file:
        written = files.write(down.tensor((3000,), torch.int32), file, 77, producer=out, lease=down)
        down.give_back(after=written)
        back = files.read(file, 77, up.tensor((3000,), torch.int32), producer=written, lease=up)
    # The lane has the file open itself.
    assert torch.equal(back.read(HOST), device)
    up.give_back(after=back)
    assert os.path.getsize(tmp_path / "file") == 77 + device.nbytes
    del back, written, out
    files.close()
    arena.close()


@pytest.mark.parametrize("engine", [None, SimulatedEngine(1)])
def test_what_fails_is_told(tmp_path: Path, engine: SimulatedEngine | None) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"1234")
    files, target = FileLane(engine=engine), torch.zeros(8, dtype=torch.uint8)
    with open(path, "rb") as file:
        ticket = files.read(file, 1, target, producer=HOST, lease=None)
        with pytest.raises(OSError, match="a read of 8 bytes at 1 stopped after 3"):
            ticket.wait()
        files.write(target, file, 0, producer=HOST, lease=None)
        with pytest.raises(OSError, match="a write of 8 bytes"):
            files.close()  # nobody has asked for it
    files = FileLane(engine=engine)
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space"):
        files.write(target, full, 0, producer=HOST, lease=None).wait()


def test_edges_and_memory_are_asked_for() -> None:
    files, data = FileLane(), torch.zeros(8)
    with pytest.raises(TypeError):
        files.write(data, 0, 0, lease=None)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="the producer is"):
        files.write(data, 0, 0, producer=None, lease=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contiguous host memory"):
        files.write(data[::2], 0, 0, producer=HOST, lease=None)
    lease = Arena(256, pinned=False).lease(8)
    lease.give_back()
    with pytest.raises(LeaseError, match="used after its return"):
        files.write(data, 1, 0, producer=HOST, lease=lease)


def test_a_lane_dropped_while_it_works(tmp_path: Path) -> None:
    data = torch.zeros(1 << 16)
    with open(tmp_path / "file", "wb") as file:
        for _ in range(50):
            # Its thread needs the interpreter to let go of `data` while it is waited for.
            FileLane().write(data, file, 0, producer=HOST, lease=None)
    assert os.path.getsize(tmp_path / "file") == data.nbytes
