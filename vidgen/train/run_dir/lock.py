"""The lock of a run directory: one run trains in it at a time.

`run.lock` is locked with flock, which the kernel releases when its process ends, however it ends.
The file names its owner, for the refusal of a second run. On some shared storage flock is missing
or counts on one machine only: there the owner's beat, a number it increases every few seconds,
shows that it lives.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from vidgen.errors import UserError

NAME = "run.lock"
BEAT_S = 5.0
ENDING_S = 2.0  # for a process that is ending to release the lock
_SIZE = 1024  # bytes of the record; padded, so that it is replaced by one write
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True)
class Owner:
    """Which process holds the lock."""

    host: str
    pid: int
    ticks: str  # when the process started, as the kernel counts: a pid is used again
    machine: str  # the boot, and the pid's namespace: a container has its own
    started: str
    beat: int = 0
    released: bool = False

    @classmethod
    def this_process(cls) -> "Owner":
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            ticks=_ticks(os.getpid()),
            machine=f"{_BOOT.read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}",
            started=datetime.now().astimezone().isoformat(timespec="seconds"),
        )

    def same_machine(self, other: "Owner") -> bool:
        return self.machine == other.machine

    def runs_here(self) -> bool:
        """Whether the process still runs, for an owner on this machine."""
        return _ticks(self.pid) == self.ticks

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.started}"


class RunLock:
    """Held from `acquire` to `release` or to the end of the process."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.path = run_dir, run_dir / NAME
        self.note: str | None = None
        """What the storage cannot promise, for the log."""
        self._owner = Owner.this_process()
        self._file: int | None = None
        self._users = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock; a UserError names the run that has it."""
        try:
            self._file = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
            )
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be opened: {error.strerror}; expected a run_dir that this "
                "user may write in"
            ) from None
        try:
            exclusive = self._flock()
            before = _read(self._file)
            if before is not None and not before.released:
                self._refuse_living(before, exclusive)
            self._write(self._owner)
        except OSError as error:
            os.close(self._file)
            self._file = None
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from None
        except BaseException:
            os.close(self._file)
            self._file = None
            raise
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise UserError where the run directory is not the one that was locked any more."""
        assert self._file is not None
        mine = os.fstat(self._file)
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except OSError as error:
            raise UserError(
                f"run_dir {self.run_dir} is not there any more ({NAME}: {error.strerror}); was it "
                "moved, removed or unmounted?"
            ) from None
        if (found.st_dev, found.st_ino) != (mine.st_dev, mine.st_ino):
            raise UserError(
                f"run_dir {self.run_dir} is another folder than when the run started; was it "
                "replaced or mounted over?"
            )
        owner = _read(self._file)
        if owner is not None and (owner.host, owner.pid) != (self._owner.host, self._owner.pid):
            raise UserError(f"run_dir {self.run_dir} was taken over by {owner}")

    def release(self) -> None:
        if self._file is None:
            return
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=1)  # it may wait for storage
        with contextlib.suppress(OSError):
            self._write(Owner(**{**asdict(self._owner), "released": True}))
        os.close(self._file)
        self._file = None

    def _flock(self) -> bool:
        """Whether the lock is exclusive; False where the storage has none."""
        assert self._file is not None
        deadline = time.monotonic() + ENDING_S
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise self._in_use(_read(self._file)) from None
                time.sleep(0.05)
            except OSError as error:
                if error.errno not in _NO_FLOCK:
                    raise
                self.note = (
                    f"{self.run_dir} is on storage without file locks ({error.strerror}): a second "
                    f"run in it is told by {NAME} alone, which two that start within "
                    f"{BEAT_S:.0f} s of each other do not see"
                )
                return False

    def _refuse_living(self, before: Owner, exclusive: bool) -> None:
        """A record without a release: of a crash, or of a run that flock does not show here."""
        if before.same_machine(self._owner):
            if not exclusive and before.runs_here() and before.pid != os.getpid():
                raise self._in_use(before)
            return
        deadline = time.monotonic() + 3 * BEAT_S
        while time.monotonic() < deadline:
            time.sleep(BEAT_S / 10)
            with contextlib.suppress(OSError):
                # Opened again: network file systems refresh on open.
                file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    now = _read(file)
                finally:
                    os.close(file)
                if now is not None and now != before and not now.released:
                    raise self._in_use(now)

    def _in_use(self, owner: Owner | None) -> UserError:
        who = "another process" if owner is None else str(owner)
        return UserError(
            f"run_dir {self.run_dir} is in use by {who}: one run at a time trains in a run_dir; "
            "stop that one first, or set another run_dir"
        )

    def _write(self, owner: Owner) -> None:
        assert self._file is not None
        text = json.dumps(asdict(owner)).encode()
        os.pwrite(self._file, text.ljust(_SIZE), 0)
        os.fsync(self._file)

    def _beat(self) -> None:
        beat = 0
        while not self._closing.wait(BEAT_S):
            beat += 1
            with contextlib.suppress(OSError):  # `check` says what is wrong with the folder
                self._write(Owner(**{**asdict(self._owner), "beat": beat}))


_held: dict[str, RunLock] = {}  # of this process, which may train in a directory again


def lock(run_dir: Path) -> RunLock:
    """The lock of a run directory, taken; for each call one call of `unlock`."""
    key = os.path.realpath(run_dir)
    held = _held.get(key)
    if held is None or held._file is None or held._owner.pid != os.getpid():
        held = RunLock(run_dir)
        held.acquire()
        _held[key] = held
    held._users += 1
    return held


def unlock(held: RunLock) -> None:
    held._users -= 1
    if held._users == 0:
        held.release()


def _ticks(pid: int) -> str:
    """When a process started; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _read(file: int) -> Owner | None:
    """None of an empty file, and of one that is no record."""
    try:
        return Owner(**json.loads(os.pread(file, _SIZE, 0)))
    except (ValueError, TypeError):
        return None
