"""One line for what the operating system refuses: which file, which operation, why."""

import errno
import os

_FULL = (errno.ENOSPC, errno.EDQUOT)
_OPERATIONS = {
    "mkdir": "create the folder",
    "makedirs": "create the folder",
    "iterdir": "list the folder",
    "scandir": "list the folder",
    "walk": "list the folder",
    "unlink": "remove",
    "rmdir": "remove the folder",
    "rmtree": "remove the folder",
    "touch": "create",
    "stat": "look up",
    "is_file": "look up",
    "is_dir": "look up",
    "exists": "look up",
    "read_text": "read",
    "read_bytes": "read",
    "write_text": "write",
    "write_bytes": "write",
    "copyfile": "copy",
}


def explain(error: OSError) -> str | None:
    """The line; None where the error is not about a file, such as a lost connection."""
    file = None if error.filename is None else os.fsdecode(error.filename)
    if error.errno in _FULL:
        at = f" while writing {file}" if file else ""
        return f"no space left on the disk{at}; free some and run again"
    if file is None:
        return None
    return f"{file}: {error.strerror or error} (operation: {_operation(error)})"


def _operation(error: OSError) -> str:
    """By the library function that failed."""
    trace, innermost = error.__traceback__, ""
    while trace is not None:
        innermost = trace.tb_frame.f_code.co_name
        trace = trace.tb_next
    return _OPERATIONS.get(innermost, "open")
