"""What differs between the tensors of two checkpoints."""

from collections.abc import Iterator
from pathlib import Path

import torch

from vidgen.runtime.checkpoint.layout import read_manifest
from vidgen.runtime.checkpoint.reader import GroupReader


def differences(a: Path, b: Path) -> Iterator[tuple[str, str]]:
    """Each tensor (group/name) that differs, and how; in memory of two tensors."""
    here, there = read_manifest(a).tensors, read_manifest(b).tensors
    for group in sorted(here.keys() | there.keys()):
        if group not in here or group not in there:
            yield group, f"only in {a if group in here else b}"
            continue
        left, right = GroupReader(a, group), GroupReader(b, group)
        shapes, others = left.shapes(), right.shapes()
        for name in sorted(shapes.keys() | others.keys()):
            label = f"{group}/{name}"
            if name not in shapes or name not in others:
                yield label, f"only in {a if name in shapes else b}"
            elif shapes[name] != others[name]:
                yield (
                    label,
                    f"{_text(shapes[name])} in the first, {_text(others[name])} in the second",
                )
            else:
                dtype, shape = shapes[name]
                x, y = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
                left.read(name, x)
                right.read(name, y)
                if how := _difference(x, y):
                    yield label, how


def _text(info: tuple[torch.dtype, tuple[int, ...]]) -> str:
    dtype, shape = info
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _difference(x: torch.Tensor, y: torch.Tensor) -> str:
    """Empty when they hold the same bytes."""
    same = x.view(-1).view(torch.uint8).equal(y.view(-1).view(torch.uint8))
    if same:
        return ""
    odd = ~(x == y) & ~(x.isnan() & y.isnan())
    if not odd.any():
        return "equal values in other bits"
    apart = (x.double() - y.double()).abs()[odd].max()
    return f"{int(odd.sum())} of {x.numel()} elements differ, by {apart:.6g} at most"
