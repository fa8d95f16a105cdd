"""Loads published weights into the model and saves them, one tensor at a time."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vidgen.errors import UserError
from vidgen.models.mmdit.config import MMDiTConfig
from vidgen.models.mmdit.detect import (
    adaptation,
    check_checkpoint,
    detect_layout,
    free_fields,
    named_tensors,
    noted_config,
    notes,
)
from vidgen.models.mmdit.layouts import (
    Layout,
    Piece,
    by_internal,
    by_published,
    copy_rows,
    pieces,
    published_shapes,
    tensor_shapes,
)
from vidgen.models.mmdit.model import MMDiT
from vidgen.models.tensor_files import (
    PathOrTensors,
    Progress,
    TensorInfo,
    TensorSource,
    destination_file,
    open_source,
    write_tensors,
)


@torch.no_grad()
def load_weights(
    model: MMDiT,
    source: PathOrTensors,
    *,
    layout: Layout | None = None,
    adapt: bool = False,
    reinitialise: Sequence[str] = (),
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    group: str = "model",
    progress: Progress | None = None,
) -> None:
    """Fill the model from a safetensors file, a folder of shards, a training step or a dict.

    A wrong, missing or extra tensor is an error. `adapt` initialises a video model from an image
    model: a guidance embedder the model lacks is ignored, and a condition embedder the source lacks
    is zero. Layers named in `reinitialise` are initialised with `generator` instead of read: the
    source may lack them or have other shapes. A model on the meta device is materialised on
    `device`. Values are cast to the parameters' dtype; sharded parameters (DTensor) read their own
    rows. `group` selects the weights of a training step, "model" or "ema".

    Fused tensors without vidgen's metadata are taken for FLUX.1's; pass layout="vidgen" for the
    `state_dict()` of a model, whose names are the same.
    """
    if isinstance(source, Mapping) and hasattr(source, "_metadata") and layout is None:
        raise UserError(
            "these tensors are some module's state_dict(): pass layout='vidgen' if the module "
            "is vidgen's, else 'flux' or 'open-sora'"
        )
    with open_source(source, group) as tensors:
        layout = layout or detect_layout(tensors)
        config = model.config
        fresh = named_tensors(config, reinitialise)
        if (noted := noted_config(tensors)) is not None:
            _check_config(tensors.where, noted, config, adapt, fresh)
        groups = by_internal(pieces(config, layout))
        left_out, zeroed = adaptation(tensors, config) if adapt else (set(), set())
        not_read = {piece.published for name in fresh for piece in groups[name]}
        check_checkpoint(
            tensors, config, layout, left_out | not_read & tensors.infos.keys(), zeroed | not_read
        )
        params = _parameters(model, device)
        for name in zeroed:
            params[name].zero_()
        model.init_weights(generator, only=fresh)
        names = [name for name in tensor_shapes(config) if name not in zeroed | fresh]
        total = sum(_nbytes(tensors, part) for name in names for part in groups[name])
        done = 0

        def read(name: str) -> Tensor | None:
            return _read(params[name].detach(), tensors, groups[name], config.head_dim)

        for name, whole in _ahead(names, read, tensors.readers):
            if whole is not None:
                _place(params[name].detach(), whole)
            done += sum(_nbytes(tensors, part) for part in groups[name])
            if progress:
                progress(done, total)


def save_weights(
    model: MMDiT, path: str | os.PathLike[str], layout: Layout = "vidgen", overwrite: bool = False
) -> None:
    """Write the model as one safetensors file; if it is sharded, every rank must call this."""
    path = destination_file(path, overwrite)
    state = {name: value.detach() for name, value in model.state_dict().items()}
    config = model.config
    shapes = published_shapes(config, layout)
    groups = by_published(pieces(config, layout))
    infos = {
        name: TensorInfo(state[groups[name][0].internal].dtype, shape)
        for name, shape in shapes.items()
    }
    tensors = _published(_whole_tensors(state), groups, infos, config)
    if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
        for _ in tensors:  # take part in gathering the shards
            pass
        return
    write_tensors(path, infos, tensors, notes(config, layout))


def _check_config(
    where: str, noted: MMDiTConfig, config: MMDiTConfig, adapt: bool, fresh: set[str]
) -> None:
    """Check fields that shapes do not determine (rotary axes, patch order), except those that only
    affect the `fresh` tensors."""
    if adapt:
        noted = replace(noted, guidance_embed=config.guidance_embed, cond_embed=config.cond_embed)
    free = free_fields(config, fresh)
    for field in MMDiTConfig.__dataclass_fields__:
        if field in free:
            continue
        found, expected = getattr(noted, field), getattr(config, field)
        if found != expected:
            raise UserError(f"{where}: was made with {field} = {found}, this model has {expected}")


def _parameters(model: MMDiT, device: torch.device | str) -> dict[str, nn.Parameter]:
    if any(param.is_meta for param in model.parameters()):
        model.to_empty(device=device)
    params = dict(model.named_parameters())
    if params.keys() != tensor_shapes(model.config).keys():
        odd = sorted(params.keys() ^ tensor_shapes(model.config).keys())
        raise ValueError(f"the model's parameters are not those of its config: {odd[:4]}")
    return params


def _read_internal(source: TensorSource, parts: list[Piece], out: Tensor, head_dim: int) -> None:
    """Read one internal tensor from the published ones, directly into place if unchanged."""
    for part in parts:
        rows, dtype = out[part.start : part.stop], source.infos[part.published].dtype
        if dtype == out.dtype and not part.interleaved:
            source.read(part.published, rows, part.row)
            continue
        scratch = torch.empty(rows.shape, dtype=dtype)
        source.read(part.published, scratch, part.row)
        copy_rows(rows, scratch, head_dim, to_half=True if part.interleaved else None)


def _read(param: Tensor, source: TensorSource, parts: list[Piece], head_dim: int) -> Tensor | None:
    """The whole tensor, or None if it was read directly into the parameter."""
    if not isinstance(param, DTensor) and param.device.type == "cpu" and param.is_contiguous():
        _read_internal(source, parts, param, head_dim)
        return None
    dtype = source.infos[parts[0].published].dtype
    for part in parts:
        dtype = torch.promote_types(dtype, source.infos[part.published].dtype)
    whole = torch.empty(param.shape, dtype=dtype)
    _read_internal(source, parts, whole, head_dim)
    return whole


def _place(param: Tensor, whole: Tensor) -> None:
    if isinstance(param, DTensor):
        moved = whole.to(device=param.device, dtype=param.dtype)
        # Every rank reads the tensor and takes its own rows, without communication.
        cut = distribute_tensor(moved, param.device_mesh, param.placements, src_data_rank=None)
        param.to_local().copy_(cut.to_local())
    else:
        param.copy_(whole)


def _ahead(
    names: list[str], read: Callable[[str], Tensor | None], readers: int
) -> Iterator[tuple[str, Tensor | None]]:
    """Yield tensors in order, read by several threads in advance.

    At most two tensors per thread are held at once: 1 GiB for the published model.
    """
    with ThreadPoolExecutor(readers, thread_name_prefix="weights") as pool:
        coming: deque[tuple[str, Future[Tensor | None]]] = deque()
        try:
            for name in names:
                coming.append((name, pool.submit(read, name)))
                if len(coming) == 2 * readers:
                    first, whole = coming.popleft()
                    yield first, whole.result()
            while coming:
                first, whole = coming.popleft()
                yield first, whole.result()
        finally:
            for _, left in coming:
                left.cancel()


def _nbytes(source: TensorSource, part: Piece) -> int:
    info = source.infos[part.published]
    return info.nbytes * part.rows // info.shape[0]


def _whole_tensors(state: dict[str, Tensor]) -> Callable[[str], Tensor]:
    """Tensors by name, gathered from their shards; the last one is cached for its next rows."""
    last: list[tuple[str, Tensor]] = []

    def whole(name: str) -> Tensor:
        if not last or last[0][0] != name:
            value = state[name]
            last[:] = [(name, (value.full_tensor() if isinstance(value, DTensor) else value).cpu())]
        return last[0][1]

    return whole


def _published(
    whole: Callable[[str], Tensor],
    groups: dict[str, list[Piece]],
    infos: dict[str, TensorInfo],
    config: MMDiTConfig,
) -> Iterator[tuple[str, Tensor]]:
    for name, info in infos.items():
        out = torch.empty(info.shape, dtype=info.dtype)
        for part in groups[name]:
            rows = whole(part.internal)[part.start : part.stop]
            target = out[part.row : part.row + part.rows]
            copy_rows(target, rows, config.head_dim, to_half=False if part.interleaved else None)
        yield name, out
