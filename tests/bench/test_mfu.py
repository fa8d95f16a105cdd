"""What does not fit the device is replaced by the largest batch that does, and said so."""

from types import SimpleNamespace
from typing import Any

import torch

from vidgen.bench import mfu
from vidgen.bench.measure import Bench, Measured
from vidgen.plan.workload import PlannedBucket


class Small(Bench):
    """A device that holds `most` clips; each takes a second."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.workload = SimpleNamespace(context=1)  # type: ignore[assignment]

    def measure(self, bucket: PlannedBucket, rounds: int) -> Measured:
        if bucket.batch > self.most:
            raise torch.OutOfMemoryError(f"{bucket.batch} clips")
        rest = dict.fromkeys(("tflops", "mfu", "hfu", "memory_gb"), 0.5)
        return Measured(bucket.name, 8960, bucket.batch, 400.0, 600.0, float(bucket.batch), **rest)

    def forget(self) -> None:
        pass


def measured(most: int) -> dict[str, Any]:
    return mfu._measured(Small(most), PlannedBucket("256px", 129, 256, 3), 1)


def test_a_batch_that_fits_is_measured() -> None:
    row = measured(most=3)
    assert row["batch"] == 3
    assert "in_place_of_batch" not in row


def test_the_largest_that_fits_takes_its_place() -> None:
    row = measured(most=2)
    assert (row["batch"], row["in_place_of_batch"], row["videos_per_s"]) == (2, 3, 2.0)
    result = {"recipe": "stage1", "device": "a GPU", "peak": "1", "context": 1, "rows": [row]}
    said = mfu.report(result)[-1]
    assert said.startswith("256px x 129: batch 3 does not fit this device, measured with the large")


def test_where_nothing_fits_the_row_says_so() -> None:
    row = measured(most=0)
    assert row["failed"] == "out of memory"
    assert row["ratio"] is None
