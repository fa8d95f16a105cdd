"""Reading: no byte in vain."""

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


def test_a_part_reads_only_the_chunks_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, row = 8, CHUNK // 4  # one chunk a row
    whole = torch.arange(rows * row, dtype=torch.float32).reshape(rows, row)
    path = checkpoint.save(tmp_path, 1, {"model": {"w": whole}}, {}).wait()
    read = 0
    real_preadv = os.preadv

    def preadv(fd: int, buffers: Any, offset: int) -> int:
        nonlocal read
        got = real_preadv(fd, buffers, offset)
        read += got
        return got

    monkeypatch.setattr(os, "preadv", preadv)
    manifest = read_manifest(path)
    entry = manifest.tensors["model"]["w"]
    for box in (Box((2, 0), (3, row)), Box((1, 10), (4, 20)), Box((7, row - 1), (1, 1))):
        read = 0
        with reader.Reader(path, manifest) as files:
            got = files.read("model/w", entry.dtype, entry.slices[0], box)
        index = box.slices_within(entry.slices[0].box)
        assert torch.equal(got[index], whole[index])
        assert read == box.shape[0] * CHUNK
