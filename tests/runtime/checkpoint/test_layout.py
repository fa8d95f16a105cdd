"""Boxes, headers and manifests."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidgen.runtime.checkpoint.layout import (
    PAGE,
    Box,
    FileEntry,
    Manifest,
    Slice,
    TensorEntry,
    safetensors_header,
)


@st.composite
def two_boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], Box, Box]:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    boxes = []
    for _ in range(2):
        start = tuple(draw(st.integers(0, n)) for n in shape)
        extent = tuple(draw(st.integers(0, n - a)) for n, a in zip(shape, start, strict=True))
        boxes.append(Box(start, extent))
    return shape, *boxes


@given(two_boxes())
def test_intersection_is_what_both_boxes_mark(case: tuple[tuple[int, ...], Box, Box]) -> None:
    shape, a, b = case
    origin = Box((0,) * len(shape), shape)
    marks = torch.zeros(shape, dtype=torch.int64)
    for box in (a, b):
        marks[box.slices_within(origin)] += 1
    common = a.intersect(b)
    assert (common.numel if common else 0) == (marks == 2).sum()
    if common:
        assert (marks[common.slices_within(origin)] == 2).all()
        # Seen from inside a box, it is the same elements.
        assert torch.equal(
            marks[a.slices_within(origin)][common.slices_within(a)],
            marks[common.slices_within(origin)],
        )


def test_header_fills_whole_pages_and_says_where_tensors_lie() -> None:
    tensors = [("wide", "F32", (3,)), ("narrow" * 999, "BOOL", (5,))]
    header, offsets = safetensors_header(tensors)
    assert len(header) == 2 * PAGE
    assert int.from_bytes(header[:8], "little") == len(header) - 8
    said = json.loads(header[8:])
    assert said["wide"] == {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    assert offsets == [2 * PAGE, 2 * PAGE + 12]


def some_manifest() -> Manifest:
    slices = (
        Slice("model-00000-of-00002.safetensors", 4096, Box((0, 0), (1, 3)), (1, 0xFFFFFFFF)),
        Slice("model-00001-of-00002.safetensors", 4096, Box((1, 0), (1, 3)), ()),
    )
    return Manifest(
        step=7,
        world=2,
        files={"trainer.json": FileEntry(2, 2, 0x0A)},
        tensors={"model": {"w": TensorEntry("F32", (2, 3), slices)}, "none": {}},
        objects=("trainer",),
    )


def test_manifest_comes_back() -> None:
    assert Manifest.from_json(some_manifest().to_json()) == some_manifest()


def test_any_flipped_bit_of_a_manifest_is_noticed() -> None:
    text = some_manifest().to_json()
    for at in range(len(text)):
        flipped = bytearray(text)
        flipped[at] ^= 1 << at % 7
        try:
            read = Manifest.from_json(bytes(flipped))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        # White space, or the case of a digit of the checksum itself, may change unharmed.
        assert read == some_manifest()


def test_a_manifest_of_another_version_is_named() -> None:
    body = json.loads(some_manifest().to_json())
    with pytest.raises(ValueError, match="not a vidgen-checkpoint"):
        Manifest.from_json(json.dumps({**body, "format": "another"}).encode())
    with pytest.raises(ValueError, match="CRC32C"):
        Manifest.from_json(json.dumps({**body, "version": 2}).encode())
