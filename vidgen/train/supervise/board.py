"""What ranks and watchdog share: a board in shared memory, and the ranks' processes.

The watchdog loads this file from its folder, so it imports nothing of the package.
"""

import contextlib
import errno
import json
import mmap
import os
import select
import signal
import stat
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RECORD = 4096  # bytes of a rank's record, and of the verdict
RECENT = 8  # steps that a record holds: short ones take less time than a poll


@dataclass(frozen=True)
class Record:
    """Where one rank is; times are time.monotonic() of this machine."""

    rank: int
    pid: int  # 0: on another machine
    step: int = 0  # the one in progress
    operation: str = "start"
    count: int = 0
    since: float = 0.0
    storage: bool = False  # waits for storage, which has a limit of its own
    done: int = 0  # steps completed here
    recent: list[list[Any]] = field(default_factory=list)  # [bucket, ms] of the last steps
    error: str = ""
    failed_at: float = 0.0
    broken_connection: bool = False  # the error may be the consequence of another rank's
    left: bool = False
    beat: int = 0
    heard: float = 0.0  # of another machine's rank: when its beat last changed
    seen: float = 0.0  # and when it was last looked up

    def __str__(self) -> str:
        return f"rank {self.rank} (step {self.step}, {self.operation})"


class BoardError(RuntimeError):
    """The board's folder or file is not this user's alone."""


def private_folder() -> int:
    """A descriptor of this user's folder in shared memory; nobody else can enter it."""
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    path = base / f"vidgen-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise BoardError(f"{path} is not a folder of this user's: {error.strerror}") from None
    found = os.fstat(handle)
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(handle)
        raise BoardError(
            f"{path} belongs to user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}; "
            f"expected user {os.getuid()} and mode 700: remove it"
        )
    return handle


class Board:
    """A record for each rank of the run, and the verdict, in memory that processes share."""

    def __init__(self, handle: int, ranks: int, name: str) -> None:
        self.ranks, self.name = ranks, name
        size = (ranks + 1) * RECORD
        os.ftruncate(handle, size)
        self._map = mmap.mmap(handle, size)

    @classmethod
    def open(cls, name: str, ranks: int) -> "Board":
        """The board of this name in the user's private folder; the first to open it creates it."""
        folder = private_folder()
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                handle = os.open(name, flags, 0o600, dir_fd=folder)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                raise BoardError(f"the watchdog's board {name} is a symbolic link") from None
            try:
                found = os.fstat(handle)
                mine = found.st_uid == os.getuid() and found.st_nlink == 1
                if not stat.S_ISREG(found.st_mode) or not mine:
                    raise BoardError(f"the watchdog's board {name} is not this user's alone")
                return cls(handle, ranks, name)
            finally:
                os.close(handle)
        finally:
            os.close(folder)

    def remove(self) -> None:
        folder = private_folder()
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.name, dir_fd=folder)
        finally:
            os.close(folder)

    def write(self, record: Record) -> None:
        self._put(record.rank, json.dumps(asdict(record)).encode())

    def read(self) -> list[Record | None]:
        """None for a rank that has not written yet, or is writing at this moment."""
        return [self._read(place) for place in range(self.ranks)]

    def _read(self, place: int) -> Record | None:
        text = self._map[place * RECORD : (place + 1) * RECORD]
        try:
            record = Record(**json.loads(text))
        except (ValueError, TypeError):
            return None
        return record if record.rank == place else None

    def publish(self, line: str) -> None:
        """Why the run ends, for all ranks of this machine."""
        self._put(self.ranks, json.dumps(line[:1000]).encode())

    def verdict(self) -> str | None:
        text = self._map[self.ranks * RECORD :]
        try:
            return str(json.loads(text))
        except ValueError:
            return None

    def _put(self, place: int, text: bytes) -> None:
        if len(text) > RECORD:
            raise ValueError(f"a record of {len(text)} bytes; there is room for {RECORD}")
        self._map[place * RECORD : (place + 1) * RECORD] = text.ljust(RECORD)

    def close(self) -> None:
        self._map.close()


def proc_stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, state first; empty if there is no process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def process_state(pid: int) -> str:
    """R, S, D, T (stopped), Z (ended) as Linux names them; "gone"."""
    fields = proc_stat(pid)
    return fields[0] if fields else "gone"


class _Process:
    """One process, held by pidfd, or on kernels before 5.3 known by its pid and start time."""

    def __init__(self, pid: int) -> None:
        self.pid, self.handle = pid, None
        try:
            self.handle = os.pidfd_open(pid)
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise
        # Looked up after pidfd_open: it is the process that is held.
        self._fields = proc_stat(pid)
        if not self._fields:
            self.close()
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))

    @property
    def parent(self) -> int:
        return int(self._fields[1])

    @property
    def gone(self) -> bool:
        now = proc_stat(self.pid)
        return not now or now[0] in "ZX" or now[_START] != self._fields[_START]

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.handle is not None:
                signal.pidfd_send_signal(self.handle, number)
            elif not self.gone:
                os.kill(self.pid, number)

    def close(self) -> None:
        if self.handle is not None:
            os.close(self.handle)


class Processes:
    """The processes of this machine's ranks and their launcher.

    Only children of the launcher are adopted, so a false record has no foreign process signalled.
    """

    def __init__(self, launcher: int, *, tied: bool) -> None:
        """`tied` ranks end with their launcher."""
        self._launcher = launcher
        self._held: dict[int, _Process] = {}  # by rank
        self._refused: set[tuple[int, int]] = set()
        self.ended: dict[int, tuple[float, str]] = {}  # by rank: when, and its exit status
        self._tie: _Process | None = None
        self._launcher_end: str | None = None
        if tied:
            try:
                self._tie = _Process(launcher)
            except ProcessLookupError:
                self._launcher_end = _UNKNOWN

    def adopt(self, rank: int, pid: int) -> None:
        """Hold a rank's process, if it is a child of the launcher."""
        if rank in self._held or rank in self.ended or (rank, pid) in self._refused:
            return
        try:
            found = _Process(pid)
        except ProcessLookupError:
            self.ended[rank] = time.monotonic(), _UNKNOWN
            return
        if found.parent == self._launcher:
            self._held[rank] = found
        else:
            found.close()
            self._refused.add((rank, pid))

    def poll(self, timeout_s: float) -> str | None:
        """Wait for a process to end, at most so long; how the launcher ended, if it has."""
        waiting = select.poll()
        everyone = [*self._held.values(), *([self._tie] if self._tie else [])]
        for process in everyone:
            if process.handle is not None:
                waiting.register(process.handle, select.POLLIN)
        waiting.poll(timeout_s * 1000)
        now = time.monotonic()
        for rank, process in list(self._held.items()):
            if process.gone:
                self.ended[rank] = now, _status(process.pid)
                self._held.pop(rank).close()
        if self._tie is not None and self._launcher_end is None and self._tie.gone:
            self._launcher_end = _status(self._launcher)
        if self._launcher_end is None:
            return None
        return f"(process {self._launcher}) {self._launcher_end}"

    @property
    def running(self) -> bool:
        return bool(self._held)

    @property
    def stopped(self) -> frozenset[int]:
        return frozenset(
            rank for rank, held in self._held.items() if process_state(held.pid) in ("T", "t")
        )

    def signal(self, number: signal.Signals) -> None:
        for process in self._held.values():
            process.signal(number)

    def describe(self, rank: int) -> str:
        if rank in self.ended:
            return self.ended[rank][1]
        if rank not in self._held:
            return "is not a child of the launcher: it was not signalled"
        names = {"T": "is stopped by a signal", "t": "is stopped by a debugger"}
        state = process_state(self._held[rank].pid)
        return names.get(state, f"is {state}")


_START = 19  # of /proc/PID/stat after the name: start time
_CODE = 49  # and exit code
_UNKNOWN = "has ended, with an unknown exit status"


def _status(pid: int) -> str:
    """How a process ended, known while its parent has not collected it."""
    fields = proc_stat(pid)
    if not fields or fields[0] not in "ZX" or len(fields) <= _CODE:
        return _UNKNOWN
    code = int(fields[_CODE])
    if os.WIFSIGNALED(code):
        number = os.WTERMSIG(code)
        known = {int(each): each.name for each in signal.Signals}
        return f"was killed by {known.get(number, f'signal {number}')}"
    return f"ended with exit status {os.WEXITSTATUS(code)}"
