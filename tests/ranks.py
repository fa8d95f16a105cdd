"""Runs a function of a test file as several processes; the fixture `ranks` starts it.

    python ranks.py FILE FUNCTION WORLD FOLDER TIMEOUT ARGUMENTS

torch is imported once; then every rank is forked and calls FUNCTION(rank, world, folder, *args).
What it returns goes to FOLDER/result-RANK.json. If a rank raises, or time is up, all are ended.
"""

import faulthandler
import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def main() -> int:
    file, name, world, folder, timeout = sys.argv[1:6]
    arguments = json.loads(sys.argv[6])
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)

    children: dict[int, int] = {}
    for rank in range(int(world)):
        if child := os.fork():
            children[child] = rank
        else:
            _be(getattr(module, name), rank, int(world), Path(folder), arguments, float(timeout))

    deadline = time.monotonic() + float(timeout)
    failed = False
    while children and not failed and time.monotonic() < deadline:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            time.sleep(0.005)
            continue
        # A rank that a test kills on purpose ends by a signal: that is not a failure here.
        failed |= os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0
        del children[child]
    if children and not failed:
        print(f"ranks {sorted(children.values())} did not end in {timeout} s", file=sys.stderr)
        failed = True
        time.sleep(1)  # their stacks are being printed
    for child in children:
        os.kill(child, signal.SIGKILL)
    return int(failed)


def _be(
    function: Any, rank: int, world: int, folder: Path, arguments: list[Any], timeout: float
) -> None:
    faulthandler.dump_traceback_later(timeout)
    try:
        result = function(rank, world, folder, *arguments)
        (folder / f"result-{rank}.json").write_text(json.dumps(result))
    except BaseException:
        print(f"--- rank {rank} ---\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
