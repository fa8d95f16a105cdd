"""A worker process: runs one request after the other, each writing into shared memory.

Started as a program of its own, it holds neither torch nor anything of the process it serves.
"""

import ctypes
import mmap
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection

import numpy as np

from vidgen import limits

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


def main(name: str, parent: int, channel: int, file: int, nbytes: int) -> None:
    """`channel` is a socket to the parent, `file` the memory it shares."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return  # it died before it could tell
    limit_memory(limits.WORKER_BYTES)
    memory = np.frombuffer(mmap.mmap(file, nbytes), np.uint8)
    with Connection(channel) as connection:
        connection.send(None)
        while True:
            try:
                offset, shape, request = connection.recv()
            except EOFError:
                return
            size = int(np.prod(shape))
            try:
                answer = request(memory[offset : offset + size].reshape(shape))
            except Exception as error:
                error.add_note(f"in {name}, of {request}")
                answer = error
            connection.send(answer)


def limit_memory(nbytes: int) -> None:
    """Let this process allocate that much beyond what it has; more raises MemoryError.

    Mapped libraries and memory shared with the parent do not count.
    """
    with open("/proc/self/statm") as file:
        has = int(file.read().split()[5]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = has + nbytes
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
