"""One pinned pool, pieces of it on loan, and ordered queues of copies with both edges."""

from vidgen.runtime.memory.arena import Arena, ArenaStats, Lease
from vidgen.runtime.memory.errors import ArenaTimeout, LeaseError
from vidgen.runtime.memory.lane import HOST, Lane, Ticket
from vidgen.runtime.memory.simulated import SimulatedEngine

__all__ = [
    "Arena",
    "ArenaStats",
    "ArenaTimeout",
    "Lease",
    "LeaseError",
    "HOST",
    "Lane",
    "SimulatedEngine",
    "Ticket",
]
