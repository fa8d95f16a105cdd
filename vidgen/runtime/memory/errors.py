"""What goes wrong with memory on loan."""


class LeaseError(RuntimeError):
    """A lease was used against its rules: returned early or twice, leaked, or used afterwards."""


class ArenaTimeout(TimeoutError):
    """No room came free in time; the message names who holds what."""
