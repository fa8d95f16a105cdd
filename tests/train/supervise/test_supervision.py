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
from vidgen.runtime.parallel import World, flight_recorder, start
from vidgen.train.supervise.board import Record
from vidgen.train.supervise.supervision import ENDED, Supervision, _is_communication, _sent
from vidgen.train.supervise.watchdog import Settings

TIMEOUT = 4.0
WORLD, BAD, STEP = 3, 1, 3
TROUBLES = ("dies", "sleeps", "stops", "raises", "another shape", "slow disk")


def steps(rank: int, trouble: str) -> None:
    """What a training run looks like to its supervision."""
    settings = Settings(TIMEOUT, storage_timeout_s=4 * TIMEOUT)
    with (
        start("cpu", timeout_s=TIMEOUT, collective_timeout_s=60) as here,
        Supervision(here, None, settings),
    ):
        group = here.context_group(WORLD, degrees=[1])
        for step in range(1, 1000):
            flight_recorder.note("forward", step=step)
            bad = rank == BAD and step == STEP
            if bad and trouble in ("dies", "stops"):
                time.sleep(TIMEOUT / 4)  # the others hear of this step
            if bad and trouble == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if bad and trouble == "sleeps":
                time.sleep(1000)
            if bad and trouble == "stops":
                os.kill(os.getpid(), signal.SIGSTOP)
            if bad and trouble == "slow disk":
                flight_recorder.note("checkpoint", storage=True)
                time.sleep(2 * TIMEOUT)  # no hang
            if step == STEP + 2 and trouble == "slow disk":
                return
            if bad and trouble == "raises":
                raise ValueError("a mistake of one rank")
            tokens = 5 if bad and trouble == "another shape" else 4
            group.agree("tokens", (tokens,))
            flight_recorder.note("all-reduce")
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


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_all_end_and_say_who_and_where(ranks: Any) -> None:
    for _ in range(3):
        everyone = ranks(all_troubles, WORLD, free_ports(len(TROUBLES)), timeout=120)
        # Another process may take a port between its choice and its use.
        if not any("is in use" in said for results in everyone for _, _, said in results):
            break
    for number, trouble in enumerate(TROUBLES):
        for rank, results in enumerate(everyone):
            status, seconds, said = results[number]
            told = f"{trouble}, rank {rank}: exit {status} after {seconds:.1f} s: {said}"
            assert seconds < 10 * TIMEOUT, told  # starting on a busy machine included
            if trouble == "slow disk":
                assert status == 0, told
                assert said == "", told
                continue
            if trouble in ("dies", "stops") and rank == BAD:
                assert status == -signal.SIGKILL, told
                continue
            assert status in (1, 2, ENDED), told
            if trouble == "raises" and rank == BAD:
                assert "a mistake of one rank" in said, told
                continue
            assert f"rank {BAD}" in said, told
            assert f"step {STEP}" in said, told
            wanted = {
                "dies": "ended or froze",
                "stops": "ended or froze",
                "sleeps": "not moved",
                "raises": "ValueError",
            }
            assert wanted.get(trouble, "differ in tokens") in said, told
            if trouble == "sleeps":
                assert f"rank {BAD} (step {STEP}, forward)" in said, told


def test_one_process_without_a_launcher_is_not_supervised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with start("cpu") as here, Supervision(here, tmp_path / "failures", Settings(1.0)) as watched:
        assert watched._watchdog is None
        watched.completed(1, 10.0, "short")
    assert not (tmp_path / "failures").exists()


def test_records_of_other_machines_are_read_with_their_own_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    world = World(2, 4, 0, torch.device("cpu"))
    here = Supervision(world, None, Settings(10.0))
    assert list(here._local) == [2, 3]
    assert here._foreign == [0, 1]
    far = Record(0, 77, step=3, operation="forward", count=9, since=time.monotonic() - 5, beat=4)
    record = here._received(0, _sent(far).encode())
    assert record is not None
    assert (record.rank, record.pid, record.count) == (0, 0, 9)
    assert time.monotonic() - record.since == pytest.approx(5, abs=1)
    assert record.seen == record.heard
    time.sleep(0.1)
    again = here._received(0, _sent(far).encode())  # the same beat: silent since the first
    assert again is not None
    assert again.seen - again.heard >= 0.1
    for nonsense in (b"", b"{}", b"[1]", b'{"rank": 0, "else": 1}'):
        assert here._received(0, nonsense) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer"), True),
        (dist.DistBackendError("NCCL error"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("socket"), False),
    ],
)
def test_which_errors_may_be_consequences(error: Exception, expected: bool) -> None:
    assert _is_communication(error) is expected
