"""How ranks agree before and beside training: through the store they met at, not by collectives.

A collective hangs or fails with a traceback when ranks call it with different settings; the store
does not. Every rank brings a value, rank 0 judges all of them, and every rank gets the verdict.
"""

import json
import time
import zlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from vidgen.errors import UserError
from vidgen.runtime.parallel import World

T = TypeVar("T")
_READ_S = 30.0  # how long rank 0 keeps the store for the others to read that the run ends


class Agreement:
    """Every rank makes the same calls in the same order; values and verdicts are JSON."""

    def __init__(self, world: World) -> None:
        self._world, self._calls = world, 0
        self._store = None if world.store is None else dist.PrefixStore("agreement", world.store)

    def decide(self, value: Any, judge: Callable[[list[Any]], T]) -> T:
        """`judge(values of all ranks)`, called on rank 0. Its UserError is raised on every rank."""
        if self._store is None:
            return judge([value])
        self._calls += 1
        call, failed = str(self._calls), None
        self._set(call, f"{call}/{self._world.rank}", value)
        if self._world.rank == 0:
            values = [self._get(call, f"{call}/{rank}") for rank in range(self._world.world)]
            try:
                answer: dict[str, Any] = {"verdict": judge(values)}
            except Exception as error:
                failed, answer = error, {"error": _line(error)}
            self._set(call, f"{call}/verdict", answer)
        answer = self._get(call, f"{call}/verdict")
        if "error" in answer:
            self._wait_for_readers(call)
            raise failed or UserError(answer["error"])
        verdict: T = answer["verdict"]
        return verdict

    def from_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on every rank."""
        return self.decide(None, lambda _: make())

    def together(self, work: Callable[[], T]) -> T:
        """Every rank's own result; where the work of one raises, all raise one UserError."""
        failed: Exception | None = None
        try:
            result = work()
        except Exception as error:
            failed = error
        said = None if failed is None else (isinstance(failed, UserError), _line(failed))
        self.decide(said, _raise_first)
        if failed is not None:  # another rank's counts first; this is for a world of one
            raise failed
        return result

    def _set(self, call: str, key: str, value: Any) -> None:
        assert self._store is not None
        try:
            self._store.set(key, zlib.compress(json.dumps(value).encode()).hex())
        except (dist.DistError, RuntimeError) as error:
            raise self._absent(call) from error

    def _get(self, call: str, key: str) -> Any:
        assert self._store is not None
        # Ranks start together; after that one may wait for storage as long as in a collective.
        limit_s = self._world.timeout_s
        if self._calls > 1:
            limit_s = self._world.collective_timeout_s or limit_s
        try:
            self._store.wait([key], timedelta(seconds=limit_s))
            text = self._store.get(key)
        except (dist.DistError, RuntimeError) as error:
            raise self._absent(call) from error
        return json.loads(zlib.decompress(bytes.fromhex(text.decode())))

    def _wait_for_readers(self, call: str) -> None:
        """The store may end with rank 0."""
        assert self._store is not None
        count = self._store.add(f"{call}/readers", 1)
        deadline = time.monotonic() + _READ_S
        while self._world.rank == 0 and count < self._world.world and time.monotonic() < deadline:
            time.sleep(0.01)
            count = self._store.add(f"{call}/readers", 0)

    def _absent(self, call: str) -> UserError:
        """Of a rank that ended, or that is stuck, before it brought its value."""
        assert self._store is not None
        names = []
        for rank in range(self._world.world):
            try:
                if not self._store.check([f"{call}/{rank}"]):
                    names.append(rank)
            except (dist.DistError, RuntimeError):
                return UserError("the run's store has ended: rank 0 or the launcher has failed")
        if not names:
            return UserError("rank 0 has not answered in time; it may have failed")
        return UserError(
            f"{listed(names)} did not answer in time: it has ended, or still waits for storage; "
            "its own output says why"
        )


def _raise_first(reports: list[Any]) -> None:
    failed = {rank: report for rank, report in enumerate(reports) if report is not None}
    if not failed:
        return
    if len(failed) == len(reports) == 1:
        return  # a world of one raises its own error
    lines = {line for _, line in failed.values()}
    first = next(iter(failed.values()))[1]
    if len(failed) == len(reports) and len(lines) == 1:
        raise UserError(first)
    raise UserError(f"{listed(list(failed))}: {first}")


def first_said(values: list[Any]) -> str | None:
    """The first rank's line, with its rank; None where no rank has one."""
    for rank, line in enumerate(values):
        if line is not None:
            return f"rank {rank}: {line}" if len(values) > 1 else str(line)
    return None


def _line(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def listed(ranks: list[int]) -> str:
    """`rank 3`, `ranks 0, 4-7`."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][-1] == rank - 1:
            spans[-1][1:] = [rank]
        else:
            spans.append([rank])
    names = ", ".join("-".join(map(str, span)) for span in spans)
    return f"rank{'s' if len(ranks) > 1 else ''} {names}"
