"""Parts of a profile: what a kernel's name says, and what no kernel covers."""

import pytest

from vidgen.bench.breakdown import covered, part_of, rows


def test_parts_of_kernels() -> None:
    assert part_of("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT") == "matmul"
    assert part_of("void flash_fwd_kernel<...>") == "attention"
    assert part_of("aten::copy_") == "copies"
    assert part_of("something else") == "other"


def test_time_covered_by_spans_that_overlap() -> None:
    assert covered([(5, 7), (0, 2), (1, 3), (2, 2.5)]) == 5
    assert covered([]) == 0


def test_gaps_are_what_nothing_covers() -> None:
    found = rows({"matmul": {"a": 3000.0}, "other": {"b": 1000.0}}, total=8000, busy=4000)
    shares = {row["part"]: row["share"] for row in found}
    assert shares["matmul"] == pytest.approx(3 / 8)
    assert shares["gaps"] == pytest.approx(0.5)
