"""Peak memory includes memory that was freed."""

import numpy as np

from vidgen.runtime.observe.memory import peak_memory_gb


def test_peak_remembers():
    before = peak_memory_gb("cpu")
    assert 0.01 < before < 1000
    block = np.ones(int(before * 1e9 / 8) // 4 + 25_000_000)
    del block
    assert peak_memory_gb("cpu") > before
