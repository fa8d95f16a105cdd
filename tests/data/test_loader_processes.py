"""The loader's worker processes: their names, their end, and a run that is killed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from vidgen.data import DataConfig, open_loader
from vidgen.data.loader import Batch, Loader

SMALL = {"crop": "random", "flip": True, "buckets": {"16px": {"5-9": {"batch": 4}}}}


def opened(manifest: Path, workers: int, prefetch: int = 2) -> Loader:
    cfg = DataConfig(manifest=str(manifest), workers=workers, prefetch=prefetch, **SMALL)
    return open_loader(cfg, seed=5, rank=0, world=1, device="cpu")


def prints(batch: Batch) -> list[tuple[int, str]]:
    """Each sample's row and the hash of its pixels."""
    return [
        (key, hashlib.sha256(video.numpy().tobytes()).hexdigest()[:8])
        for key, video in zip(batch.keys, batch.video_BTHWC, strict=True)
    ]


def children(parent: int) -> dict[int, str]:
    """Living child processes and their names."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, rest = (folder / "stat").read_text().split(" (", 1)[1].rsplit(") ", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, its_parent = rest.split()[:2]
        if int(its_parent) == parent and state != "Z":
            found[int(folder.name)] = name
    return found


def test_workers_are_named_and_leave_nothing(clip_set: Any) -> None:
    def ours() -> tuple[list[str], list[str]]:
        threads = [t.name for t in threading.enumerate() if t.name.startswith("vidgen-loader")]
        return threads, sorted(n for n in children(os.getpid()).values() if "vidgen" in n)

    files = len(os.listdir("/proc/self/fd"))
    loader = opened(clip_set.manifest, workers=3, prefetch=9)
    for _ in range(4):
        next(loader)
    threads, processes = ours()
    assert threads == ["vidgen-loader"]
    assert set(processes) <= {"vidgen-loader0", "vidgen-loader1", "vidgen-loader2"}
    assert processes
    loader.close()
    assert ours() == ([], [])
    assert len(os.listdir("/proc/self/fd")) <= files
    dropped = opened(clip_set.manifest, workers=2)
    next(dropped)
    del dropped
    assert ours() == ([], [])


VICTIM = """
import sys, json, hashlib
from vidgen.data import DataConfig, open_loader
cfg = DataConfig(**json.loads(sys.argv[1]))
loader = open_loader(cfg, seed=5, rank=0, world=1, device="cpu")
if sys.argv[2] != "null":
    loader.load_state_dict(json.loads(sys.argv[2]))
for batch in loader:
    prints = [(k, hashlib.sha256(v.numpy().tobytes()).hexdigest()[:8])
              for k, v in zip(batch.keys, batch.video_BTHWC)]
    print(json.dumps([prints, loader.state_dict()]), flush=True)
"""


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        stat = Path(f"/proc/{pid}/stat").read_text()
        if stat.rsplit(") ", 1)[1][0] in "ZX":
            return  # dead; whoever inherited it has not looked yet
        assert time.monotonic() < deadline, f"worker {pid} outlived its parent"
        time.sleep(0.02)


def test_kill_in_the_middle_and_resume(clip_set: Any) -> None:
    with opened(clip_set.manifest, workers=0) as loader:
        reference = [prints(next(loader)) for _ in range(9)]
    fields = {"manifest": str(clip_set.manifest), "workers": 2, **SMALL}
    shared_before = set(os.listdir("/dev/shm"))
    state, read = None, []
    for count in (4, 5):
        command = [sys.executable, "-c", VICTIM, json.dumps(fields), json.dumps(state)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
            assert run.stdout is not None
            for _ in range(count):
                prints_, state = json.loads(run.stdout.readline())
                read.append([tuple(sample) for sample in prints_])
            workers = children(run.pid)
            assert set(workers.values()) == {"vidgen-loader0", "vidgen-loader1"}
            run.send_signal(signal.SIGKILL)
            run.wait()
            for pid in workers:
                wait_until_gone(pid)
    assert read == reference
    assert set(os.listdir("/dev/shm")) <= shared_before
