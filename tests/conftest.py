"""What every test shares: one CPU thread, a known seed, and a reason when a GPU test is skipped."""

import os
import random
import shutil
import sys
import tempfile
import zlib

# Before torch is imported: tests run side by side, one thread each, and what torch compiles is
# theirs alone. In the common cache a killed run leaves half files that fail every later one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="vidgen-compiled-")

import pytest
from hypothesis import settings

SEED = int(os.environ.get("VIDGEN_TEST_SEED", "0"))

# A busy machine is no failure, and the same commit gives the same verdict: no deadline, no luck.
settings.register_profile("vidgen", deadline=None, derandomize=True, database=None)
settings.load_profile("vidgen")


def pytest_report_header() -> str:
    return f"vidgen: tests seeded with VIDGEN_TEST_SEED={SEED}"


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device is visible to torch")
        for item in marked:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """Every test starts from random states of its own, whatever ran before it."""
    seed = SEED ^ zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
