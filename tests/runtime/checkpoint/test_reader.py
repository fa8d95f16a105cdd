"""Reading: no byte in vain."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidgen.errors import UserError
from vidgen.runtime import checkpoint
from vidgen.runtime.checkpoint import reader
from vidgen.runtime.checkpoint.layout import CHUNK, Box, read_manifest


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], Box]:
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=0, max_size=4)))
    start = tuple(draw(st.integers(0, n - 1)) for n in shape)
    return shape, Box(
        start, tuple(draw(st.integers(1, n - a)) for n, a in zip(shape, start, strict=True))
    )


@given(boxes(), st.sampled_from([1, 2, 5, 8, 1000]))
def test_chunk_ranges_are_the_chunks_that_hold_the_box(
    case: tuple[tuple[int, ...], Box], chunk: int
) -> None:
    shape, box = case
    item = 2
    flat = torch.arange(Box((), shape).numel).reshape(shape)
    wanted = flat[box.slices_within(Box((0,) * len(shape), shape))].reshape(-1).tolist()
    chunks = {byte // chunk for i in wanted for byte in range(i * item, (i + 1) * item)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "CHUNK", chunk)
        ranges = reader.chunk_ranges(shape, box, item)
    assert {c for low, high in ranges for c in range(low, high)} == chunks
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ranges))


def test_a_part_reads_only_the_chunks_it_needs(tmp_path: Path, way: str) -> None:
    rows, row = 8, CHUNK // 4  # one chunk a row
    whole = torch.arange(rows * row, dtype=torch.float32).reshape(rows, row)
    path = checkpoint.save(tmp_path, 1, {"model": {"w": whole}}, {}).wait()
    entry = read_manifest(path).tensors["model"]["w"]
    for box in (Box((2, 0), (3, row)), Box((1, 10), (4, 20)), Box((7, row - 1), (1, 1))):
        (piece,) = reader.pieces(path, "model/w", entry, box)
        got = torch.zeros(box.shape)
        statistics = reader.fill_scattered(path, piece, got)
        assert torch.equal(got, whole[box.slices_within(Box((0, 0), (rows, row)))])
        assert statistics.bytes == box.shape[0] * CHUNK


def test_rows_of_a_tensor_are_read_from_wherever_they_lie(tmp_path: Path, way: str) -> None:
    torch.manual_seed(0)
    odd = {"w": torch.randn(70_000, 3), "b": torch.randn(5).bfloat16(), "s": torch.tensor(3)}
    path = checkpoint.save(tmp_path, 1, {"model": odd}, {}).wait()
    files = checkpoint.GroupReader(path, "model")
    assert files.shapes() == {n: (t.dtype, tuple(t.shape)) for n, t in odd.items()}
    for name, row, rows in (("w", 0, 70_000), ("w", 21_850, 7), ("w", 69_999, 1), ("b", 2, 3)):
        out = torch.empty(rows, *odd[name].shape[1:], dtype=odd[name].dtype)
        files.read(name, out, row)
        assert torch.equal(out, odd[name][row : row + rows])
    files.read("s", out := torch.tensor(0))
    assert out == 3
    turned = torch.empty(3, 70_000).t()
    files.read("w", turned)
    assert torch.equal(turned, odd["w"])
    with pytest.raises(UserError, match=r"hold 0 of the 3 elements of model/w"):
        files.read("w", torch.empty(1, 3), 70_000)
    with pytest.raises(UserError, match="holds no 'ema'; it holds model"):
        checkpoint.GroupReader(path, "ema")
