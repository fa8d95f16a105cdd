"""A rank that dies, stands still or differs ends all ranks in time, with a line that names it."""

import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from vidgen.errors import UserError
from vidgen.runtime.parallel import flight, start
from vidgen.runtime.parallel.watch import ENDED

TIMEOUT = 4.0
WORLD, BAD, STEP = 3, 1, 3
TROUBLES = ("dies", "sleeps", "raises", "another shape")


def steps(rank: int, trouble: str) -> None:
    """What a training run looks like to the watch."""
    with start("cpu", timeout_s=TIMEOUT) as here, here.watch():
        group = here.context_group(WORLD, degrees=[1])
        for step in range(1, 1000):
            flight.note("forward", step=step)
            bad = rank == BAD and step == STEP
            if bad and trouble == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if bad and trouble == "sleeps":
                time.sleep(1000)
            if bad and trouble == "raises":
                raise ValueError("a mistake of one rank")
            tokens = 5 if bad else 4
            group.agree("tokens", (tokens,))
            flight.note("all-reduce")
            dist.all_reduce(torch.ones(tokens))


def in_a_process_of_its_own(rank: int, trouble: str, said: Path) -> list[Any]:
    """[exit status, seconds, what it said]"""
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), sys.stderr.fileno())
        try:
            steps(rank, trouble)
        except UserError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(2)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return [os.waitstatus_to_exitcode(status), time.monotonic() - begin, said.read_text()]


def all_troubles(rank: int, world: int, folder: Path, ports: list[int]) -> list[list[Any]]:
    results = []
    for trouble, port in zip(TROUBLES, ports, strict=True):
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        results.append(in_a_process_of_its_own(rank, trouble, folder / f"{trouble}-{rank}"))
    return results


def test_all_end_and_say_who_and_where(ranks: Any) -> None:
    sockets = [socket.socket() for _ in TROUBLES]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    everyone = ranks(all_troubles, WORLD, ports, timeout=120)
    for number, trouble in enumerate(TROUBLES):
        for rank, results in enumerate(everyone):
            status, seconds, said = results[number]
            told = f"{trouble}, rank {rank}: exit {status} after {seconds:.1f} s: {said}"
            assert seconds < 10 * TIMEOUT, told  # starting on a busy machine included
            if trouble == "dies" and rank == BAD:
                assert status == -signal.SIGKILL, told
                continue
            assert status in (1, 2, ENDED), told
            if trouble == "raises" and rank == BAD:
                assert "a mistake of one rank" in said, told
                continue
            assert f"rank {BAD}" in said, told
            assert f"step {STEP}" in said, told
            wanted = {"dies": "ended", "sleeps": "not moved", "raises": "ValueError"}
            assert wanted.get(trouble, "differ in tokens") in said, told
            if trouble == "sleeps":
                assert f"rank {BAD} (step {STEP}, forward)" in said, told


def test_a_run_of_one_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with start("cpu") as here, here.watch() as watch:
        assert watch is None
