"""Rewrites a checkpoint in another layout, bit for bit, using the memory of about one tensor."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from vidgen.errors import UserError
from vidgen.models.mmdit.config import PRESETS, MMDiTConfig
from vidgen.models.mmdit.detect import (
    adaptation,
    check_checkpoint,
    detect_layout,
    infer_config,
    noted_config,
    notes,
)
from vidgen.models.mmdit.layouts import (
    LAYOUTS,
    Layout,
    Piece,
    by_published,
    copy_rows,
    pieces,
    published_shapes,
)
from vidgen.models.tensor_files import (
    Progress,
    TensorInfo,
    TensorSource,
    destination_file,
    open_source,
    write_tensors,
)


def describe(source: str | os.PathLike[str], group: str = "model") -> tuple[Layout, MMDiTConfig]:
    """A checkpoint's layout, and its config, recorded or inferred from shapes."""
    with open_source(source, group) as tensors:
        layout = detect_layout(tensors)
        return layout, infer_config(tensors, layout)


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: Layout,
    adapt: Literal["t2v", "i2v"] | None = None,
    group: str = "model",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MMDiTConfig:
    """Rewrite a checkpoint in another layout, bit for bit, using the memory of about one tensor.

    `adapt` creates the initial weights of a video model: the guidance embedder is removed, and for
    i2v a missing condition embedder is added as zeros. `group` selects the weights of a training
    checkpoint, "model" or "ema". Returns the written config.
    """
    if to not in LAYOUTS:
        raise UserError(f"layout '{to}': expected one of {', '.join(LAYOUTS)}")
    destination = destination_file(destination, overwrite)
    with open_source(source, group) as tensors:
        layout = detect_layout(tensors)
        config = infer_config(tensors, layout)
        told = noted_config(tensors) is not None or config in PRESETS.values()
        left_out: set[str] = set()
        zeroed: set[str] = set()
        if adapt:
            config = replace(config, guidance_embed=False, cond_embed=adapt == "i2v")
            left_out, zeroed = adaptation(tensors, config)
        check_checkpoint(tensors, config, layout, left_out, zeroed)
        groups = by_published(pieces(config, to))
        origins = {(piece.internal, piece.start): piece for piece in pieces(config, layout)}
        infos = {
            name: TensorInfo(_dtype(tensors, name, groups[name], origins, zeroed), shape)
            for name, shape in published_shapes(config, to).items()
        }
        written = _converted(tensors, groups, origins, infos, zeroed, config.head_dim)
        # Fields that shapes do not determine are not recorded as known.
        note = notes(config, to) if told else {"vidgen.layout": to}
        write_tensors(destination, infos, _counted(written, infos, progress), note)
    return config


def _converted(
    source: TensorSource,
    groups: dict[str, list[Piece]],
    origins: dict[tuple[str, int], Piece],
    infos: dict[str, TensorInfo],
    zeroed: set[str],
    head_dim: int,
) -> Iterator[tuple[str, Tensor]]:
    for name, info in infos.items():
        if name in zeroed:
            yield name, torch.zeros(info.shape, dtype=info.dtype)
            continue
        out = torch.empty(info.shape, dtype=info.dtype)
        for part in groups[name]:
            target = out[part.row : part.row + part.rows]
            origin = origins[part.internal, part.start]
            if origin.interleaved == part.interleaved:
                source.read(origin.published, target, origin.row)
            else:
                scratch = torch.empty_like(target)
                source.read(origin.published, scratch, origin.row)
                copy_rows(target, scratch, head_dim, to_half=origin.interleaved)
        yield name, out


def _dtype(
    source: TensorSource,
    name: str,
    parts: list[Piece],
    origins: dict[tuple[str, int], Piece],
    zeroed: set[str],
) -> torch.dtype:
    if name in zeroed:
        return source.infos["img_in.weight"].dtype
    found = {
        origin.published: source.infos[origin.published].dtype
        for origin in (origins[part.internal, part.start] for part in parts)
    }
    if len(set(found.values())) > 1:
        raise UserError(
            f"{source.where}: "
            + ", ".join(f"'{tensor}' is {dtype}" for tensor, dtype in found.items())
            + f"; they cannot be one tensor '{name}' without loss"
        )
    return next(iter(found.values()))


def _counted(
    tensors: Iterator[tuple[str, Tensor]], infos: dict[str, TensorInfo], progress: Progress | None
) -> Iterator[tuple[str, Tensor]]:
    total, done = sum(info.nbytes for info in infos.values()), 0
    for name, tensor in tensors:
        yield name, tensor
        done += tensor.nbytes
        if progress:
            progress(done, total)
