"""One pinned pool, pieces of it on loan, and ordered queues of copies with both edges."""

from vidgen.runtime.memory.arena import Arena, ArenaStats, Lease
from vidgen.runtime.memory.errors import ArenaTimeout, LeaseError
from vidgen.runtime.memory.files import FileLane
from vidgen.runtime.memory.lane import HOST, Lane, Ticket
from vidgen.runtime.memory.shared import ArenaHandle, SharedArena
from vidgen.runtime.memory.simulated import SimulatedEngine

__all__ = [
    "Arena",
    "ArenaHandle",
    "ArenaStats",
    "ArenaTimeout",
    "FileLane",
    "Lease",
    "LeaseError",
    "HOST",
    "Lane",
    "SharedArena",
    "SimulatedEngine",
    "Ticket",
]
