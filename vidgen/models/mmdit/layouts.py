"""Where each published checkpoint keeps the rows of the model's tensors.

Inside, projections are fused ([q | k | v] and [q | k | v | mlp] rows) and rotary pairs lie half a
head apart. Open-Sora v2 keeps the rows in tensors of their own; FLUX.1 keeps them fused but pairs
neighbours. Import, export and conversion all follow from one list of pieces.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from vidgen.errors import UserError
from vidgen.models.mmdit.config import PRESETS, MMDiTConfig
from vidgen.models.tensor_files import TensorSource

Layout = Literal["open-sora", "flux", "vidgen"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
TIME_FREQUENCIES = 256  # width of the sinusoidal embedding of t and of the guidance
Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(config: MMDiTConfig) -> Shapes:
    """Every tensor of the model by its internal name."""
    width, mlp = config.hidden_size, config.mlp_hidden
    shapes: Shapes = {}

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    def embedder(name: str, columns: int) -> None:
        linear(f"{name}.in_layer", width, columns)
        linear(f"{name}.out_layer", width, width)

    def qk_norm(name: str) -> None:
        shapes[f"{name}.query_norm.scale"] = (config.head_dim,)
        shapes[f"{name}.key_norm.scale"] = (config.head_dim,)

    linear("img_in", width, config.in_channels)
    embedder("time_in", TIME_FREQUENCIES)
    embedder("vector_in", config.vec_in_dim)
    if config.guidance_embed:
        embedder("guidance_in", TIME_FREQUENCIES)
    if config.cond_embed:
        linear("cond_in", width, config.cond_channels)
    linear("txt_in", width, config.context_in_dim)
    for i in range(config.depth):
        for stream in ("img", "txt"):
            name = f"double_blocks.{i}.{stream}"
            linear(f"{name}_mod.lin", 6 * width, width)
            linear(f"{name}_attn.qkv", 3 * width, width, bias=config.qkv_bias)
            qk_norm(f"{name}_attn.norm")
            linear(f"{name}_attn.proj", width, width)
            linear(f"{name}_mlp.0", mlp, width)
            linear(f"{name}_mlp.2", width, mlp)
    for i in range(config.depth_single_blocks):
        name = f"single_blocks.{i}"
        linear(f"{name}.linear1", 3 * width + mlp, width)
        linear(f"{name}.linear2", width, width + mlp)
        qk_norm(f"{name}.norm")
        linear(f"{name}.modulation.lin", 3 * width, width)
    linear("final_layer.linear", config.in_channels, width)
    linear("final_layer.adaLN_modulation.1", 2 * width, width)
    return shapes


@dataclass(frozen=True)
class Piece:
    """Rows of an internal tensor, and where a published file has them."""

    internal: str
    start: int
    stop: int
    published: str
    row: int  # of the published tensor, where these rows start
    interleaved: bool  # rotary pairs are neighbours there; half a head apart here

    @property
    def rows(self) -> int:
        return self.stop - self.start


def pieces(config: MMDiTConfig, layout: Layout) -> list[Piece]:
    """All rows of all tensors, once each, cut alike in every layout."""
    width = config.hidden_size
    found = []
    for name, (rows, *_) in tensor_shapes(config).items():
        stem, _, kind = name.rpartition(".")  # kind: weight, bias or scale
        if stem.endswith(".qkv") or stem.endswith(".linear1"):
            rest = "v_proj" if stem.endswith(".qkv") else "v_mlp"
            parts = {"q_proj": (0, width), "k_proj": (width, 2 * width), rest: (2 * width, rows)}
            for part, (start, stop) in parts.items():
                turned = layout == "flux" and part != rest
                if layout == "open-sora":
                    own = f"{stem.rpartition('.')[0]}.{part}.{kind}"
                    found.append(Piece(name, start, stop, own, 0, turned))
                else:
                    found.append(Piece(name, start, stop, name, start, turned))
        else:
            turned = layout == "flux" and stem.endswith(("query_norm", "key_norm"))
            found.append(Piece(name, 0, rows, name, 0, turned))
    return found


def published_shapes(config: MMDiTConfig, layout: Layout) -> Shapes:
    internal = tensor_shapes(config)
    shapes: Shapes = {}
    for piece in pieces(config, layout):
        rows = max(piece.row + piece.rows, shapes.get(piece.published, (0,))[0])
        shapes[piece.published] = (rows, *internal[piece.internal][1:])
    return shapes


def copy_rows(out: Tensor, rows: Tensor, head_dim: int, *, to_half: bool | None) -> None:
    """Copy, moving rotary pairs: to_half from neighbours to half a head apart, False back."""
    if to_half is None:
        out.copy_(rows)
        return
    heads, half, rest = rows.shape[0] // head_dim, head_dim // 2, rows.shape[1:]
    apart, neighbours = (heads, 2, half, *rest), (heads, half, 2, *rest)
    if to_half:
        out.view(apart).copy_(rows.view(neighbours).transpose(1, 2))
    else:
        out.view(neighbours).copy_(rows.view(apart).transpose(1, 2))


def detect_layout(source: TensorSource) -> Layout:
    """From the file's own note, else from its tensor names."""
    noted = source.metadata.get("vidgen.layout")
    if noted in LAYOUTS:
        return noted
    names = source.infos
    if "double_blocks.0.img_attn.q_proj.weight" in names:
        return "open-sora"
    if "double_blocks.0.img_attn.qkv.weight" in names:
        return "flux"
    if any(name.startswith("transformer_blocks.") for name in names):
        raise UserError(
            f"{source.where}: is in the diffusers layout; expected the original file, "
            f"such as flux1-dev.safetensors"
        )
    some = ", ".join(f"'{name}'" for name in sorted(names)[:2]) or "no tensors"
    raise UserError(
        f"{source.where}: holds {some}; expected an MMDiT in the layout of Open-Sora v2 "
        f"(double_blocks.0.img_attn.q_proj.weight), FLUX.1 (double_blocks.0.img_attn.qkv.weight) "
        f"or vidgen"
    )


def infer_config(source: TensorSource, layout: Layout) -> MMDiTConfig:
    """The config a file notes, else the one its shapes tell.

    Shapes cannot tell axes_dim and theta (taken from the published models, in proportion) nor,
    without a condition embedder, the patch size.
    """
    if (noted := noted_config(source)) is not None:
        return noted
    infos = source.infos

    def size(name: str, dim: int) -> int:
        if name not in infos or len(infos[name].shape) <= dim:
            raise UserError(f"{source.where}: tensor '{name}' is missing; it tells the model size")
        return infos[name].shape[dim]

    def blocks(prefix: str) -> int:
        return len({name.split(".")[1] for name in infos if name.startswith(f"{prefix}.")})

    query = "double_blocks.0.img_attn.norm.query_norm.scale"
    width, head_dim = size("img_in.weight", 0), size(query, 0)
    in_channels = size("img_in.weight", 1)
    cond_embed = "cond_in.weight" in infos
    if cond_embed:
        patch = round(max(size("cond_in.weight", 1) - in_channels, 1) ** 0.5)
    else:
        patch = 1 if in_channels == PRESETS["opensora_v2_dcae"].in_channels else 2
    if layout == "open-sora":
        bias = "double_blocks.0.img_attn.q_proj.bias"
    else:
        bias = "double_blocks.0.img_attn.qkv.bias"
    time = max(2, head_dim // 16 * 2)
    rows = max(2, (head_dim - time) // 4 * 2)
    try:
        return MMDiTConfig(
            in_channels=in_channels,
            patch_size=patch,
            hidden_size=width,
            num_heads=width // head_dim,
            depth=blocks("double_blocks"),
            depth_single_blocks=blocks("single_blocks"),
            mlp_ratio=size("double_blocks.0.img_mlp.0.weight", 0) / width,
            axes_dim=(head_dim - 2 * rows, rows, rows),
            vec_in_dim=size("vector_in.in_layer.weight", 1),
            context_in_dim=size("txt_in.weight", 1),
            qkv_bias=bias in infos,
            guidance_embed="guidance_in.in_layer.weight" in infos,
            cond_embed=cond_embed,
        )
    except ValidationError as error:
        reason = "; ".join(problem["msg"] for problem in error.errors())
        raise UserError(f"{source.where}: its shapes are those of no MMDiT: {reason}") from error


def noted_config(source: TensorSource) -> MMDiTConfig | None:
    if (note := source.metadata.get("vidgen.config")) is None:
        return None
    try:
        return TypeAdapter(MMDiTConfig).validate_json(note)
    except ValidationError as error:
        raise UserError(f"{source.where}: notes a model config vidgen cannot read: {note}") from error


def notes(config: MMDiTConfig, layout: Layout) -> dict[str, str]:
    """What our files say of themselves, so that nothing need be guessed when they are read."""
    note = {"vidgen.layout": layout, "vidgen.config": json.dumps(asdict(config))}
    return {"format": "pt", **note}


def with_parts(config: MMDiTConfig, target: Literal["t2v", "i2v"]) -> MMDiTConfig:
    """The video model that starts from these weights: no guidance embedder; i2v: a cond_in."""
    return replace(config, guidance_embed=False, cond_embed=target == "i2v")


def check_tensors(
    source: TensorSource, expected: Shapes, allowed_missing: Iterable[str] = ()
) -> None:
    """Refuse a wrong, missing or extra tensor by name."""
    problems = []
    allowed = set(allowed_missing)
    for name, shape in expected.items():
        if name not in source.infos:
            if name not in allowed:
                problems.append(f"tensor '{name}' {list(shape)} is missing")
            continue
        info = source.infos[name]
        if info.shape != shape:
            problems.append(f"tensor '{name}' is {list(info.shape)}, expected {list(shape)}")
        elif not info.dtype.is_floating_point or info.dtype.itemsize < 2:
            problems.append(f"tensor '{name}' is {info.dtype}, expected a float of 16 bits or more")
    for name, info in source.infos.items():
        if name not in expected:
            problems.append(f"tensor '{name}' {list(info.shape)} is not part of this model")
    if problems:
        more = f"; and {len(problems) - 3} more like these" if len(problems) > 3 else ""
        raise UserError(f"{source.where}: {'; '.join(problems[:3])}{more}")


def by_published(found: Iterable[Piece]) -> Mapping[str, list[Piece]]:
    groups: dict[str, list[Piece]] = {}
    for piece in found:
        groups.setdefault(piece.published, []).append(piece)
    return groups
