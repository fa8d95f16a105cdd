"""Fixtures for tests that need several processes."""

import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vidgen

Ranks = Callable[..., list[Any]]


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    """`ranks(function, world, *arguments)`: what each rank returned; None if it was killed.

    `function(rank, world, folder, *arguments)` stands at the top of the test file; arguments and
    results are what JSON takes; `folder` is new and common to the ranks.
    """
    count = 0

    def run(
        function: Callable[..., Any], world: int, *arguments: Any, timeout: float = 240
    ) -> list[Any]:
        nonlocal count
        folder = tmp_path / f"ranks-{count}"
        folder.mkdir()
        count += 1
        file = inspect.getsourcefile(function)
        assert file is not None
        package = str(Path(vidgen.__file__).parents[1])
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]),
        }
        command = [
            *(sys.executable, str(Path(__file__).with_name("ranks.py"))),
            *(file, function.__name__, str(world), str(folder), str(timeout)),
            json.dumps(arguments),
        ]
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=2 * timeout)  # it ends itself, after importing
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever is left of it
        if process.returncode:
            pytest.fail(f"{function.__name__} failed:\n{said}", pytrace=False)
        results = [folder / f"result-{rank}.json" for rank in range(world)]
        return [json.loads(r.read_text()) if r.exists() else None for r in results]

    return run
