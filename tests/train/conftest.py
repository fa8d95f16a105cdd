"""Ways to run a tiny recipe: in this process, in child processes, on several ranks."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vidgen

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The bits of a matrix product depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def vidgen_main(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line, called here: (exit code, stdout, stderr)."""

    def call(*argv: str | Path) -> tuple[int, str, str]:
        from vidgen.cli.main import main

        capsys.readouterr()
        status = main([str(word) for word in argv])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return call


@pytest.fixture
def start() -> Iterator[Start]:
    """`start("train", path, RANK=0)`: `python -m vidgen`, ended with the test."""
    children: list[subprocess.Popen[str]] = []

    def begin(*argv: str | Path, **environment: Any) -> "subprocess.Popen[str]":
        child = subprocess.Popen(
            [sys.executable, "-m", "vidgen", *map(str, argv)],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(vidgen.__file__).parents[1]),
                **{name: str(value) for name, value in environment.items()},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        children.append(child)
        return child

    yield begin
    for child in children:
        if child.poll() is None:
            child.kill()
            child.communicate()


@pytest.fixture
def start_ranks(start: Start) -> Callable[..., list["subprocess.Popen[str]"]]:
    """`start_ranks(2, "train", path)`: the processes, with the environment torchrun gives them."""

    def begin(world: int, *argv: str | Path) -> list["subprocess.Popen[str]"]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return [
            start(
                *argv,
                RANK=rank,
                LOCAL_RANK=rank,
                WORLD_SIZE=world,
                LOCAL_WORLD_SIZE=world,
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
                GLOO_SOCKET_IFNAME="lo",
            )
            for rank in range(world)
        ]

    return begin
