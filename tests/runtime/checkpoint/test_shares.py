"""Dividing the work of writing among ranks."""

import pytest
import torch

from vidgen.runtime.checkpoint.layout import Box
from vidgen.runtime.checkpoint.shares import Share, held, shares_to_write


def share(name: str, shape: tuple[int, ...], start: int, rows: int) -> Share:
    return Share("model", name, "F32", shape, Box((start, 0), (rows, shape[1])))


def test_what_all_hold_is_written_once_and_spread_by_size() -> None:
    sizes = {"a": 100, "b": 60, "c": 50, "d": 10, "e": 0}
    shares = list(held({"model": {name: torch.zeros(n, 2) for name, n in sizes.items()}}))
    divided = [shares_to_write([shares] * 2, rank) for rank in range(2)]
    assert sorted(s.name for part in divided for s in part) == sorted(sizes)
    loads = [sum(s.size for s in part) for part in divided]
    assert max(loads) - min(loads) <= 10 * 2 * 4


def test_parts_are_written_by_those_who_hold_them_and_copies_once() -> None:
    # Two parts, each held by two ranks; rank 3 also holds an empty one.
    low, high = share("w", (5, 2), 0, 3), share("w", (5, 2), 3, 2)
    empty = share("w", (5, 2), 5, 0)
    listings = [[low], [high], [low], [high, empty]]
    divided = [shares_to_write(listings, rank) for rank in range(4)]
    assert sorted(s.box.start for part in divided for s in part) == [(0, 0), (3, 0)]
    for part, own in zip(divided, listings, strict=True):
        assert set(part) <= set(own)


def test_what_one_rank_holds_does_not_have_to_wait_its_turn() -> None:
    alone, common = share("alone", (90, 1), 0, 90), share("common", (100, 1), 0, 100)
    assert shares_to_write([[alone, common], [common]], 1) == [common]


@pytest.mark.parametrize(
    ("listings", "said"),
    [
        ([[share("w", (5, 2), 0, 3)], []], "model/w hold 6 of its 10 elements"),
        ([[share("w", (5, 2), 0, 3)], [share("w", (5, 2), 2, 3)]], "hold 12 of its 10"),
        ([[share("w", (5, 2), 0, 5)], [share("w", (4, 2), 0, 4)]], r"\[4, 2\] on rank 1"),
    ],
)
def test_ranks_that_disagree_are_refused(listings: list[list[Share]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        shares_to_write(listings, 0)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, device="meta"),
        torch.eye(2).to_sparse(),
    ],
)
def test_tensors_that_no_file_holds_are_named(tensor: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="model/odd"):
        held({"model": {"odd": tensor}})
