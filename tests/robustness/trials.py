"""Seeded trials of what a command or a reader does with a damaged or hostile file."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SEED = int(os.environ.get("VIDGEN_TEST_SEED", "0"))
FACTOR = int(os.environ.get("VIDGEN_TRIALS", "1"))
"""Times as many trials; `make soak` sets it."""


@dataclass
class Tally:
    """Counts trials that held: the file was refused by name, or read as it was written."""

    row: str
    refusals: tuple[type[Exception], ...]
    tried: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)

    def trial(self, about: str, read: Callable[[], Any], same: Callable[[Any], bool]) -> None:
        self.tried += 1
        try:
            found = read()
        except self.refusals as error:
            self.refused += 1
            if not str(error) or "\x1b" in str(error):
                self.failures.append(f"{about}: refused with {str(error)!r}")
        except Exception as error:
            self.failures.append(f"{about}: {type(error).__name__}: {error}"[:300])
        else:
            if not same(found):
                self.failures.append(f"{about}: read as something else")

    def check(self) -> None:
        held = self.tried - len(self.failures)
        print(f"{self.row}: tried {self.tried}, held {held}, refused {self.refused}")
        assert not self.failures, f"{len(self.failures)} of {self.tried}: {self.failures[:4]}"
        assert self.refused, "nothing was refused: the trials do not reach the reader"


def rng(name: str) -> random.Random:
    return random.Random(f"{SEED} {name}")


def mutated(data: bytes, draw: random.Random, begin: int = 0) -> tuple[str, bytes]:
    """How, and the bytes: flipped bits, a cut end, a lost or zeroed stretch, noise."""
    out = bytearray(data)
    kind = draw.choice(("flip", "flip", "flips", "cut", "lost", "zeros", "noise"))
    at = draw.randrange(begin, len(out))
    length = draw.randrange(1, max(2, len(out) // 4))
    if kind == "flip":
        out[at] ^= 1 << draw.randrange(8)
    elif kind == "flips":
        for _ in range(8):
            out[draw.randrange(begin, len(out))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del out[at:]
    elif kind == "lost":
        del out[at : at + length]
    else:
        stop = min(at + length, len(out))
        out[at:stop] = bytes(stop - at) if kind == "zeros" else draw.randbytes(stop - at)
    return f"{kind} at {at}", bytes(out)
