"""Errors raised by arenas and leases."""


class LeaseError(RuntimeError):
    """A lease was misused: returned early or twice, leaked, or used after its return."""


class ArenaTimeout(TimeoutError):
    """No room became free in time; the message lists the holders."""
