"""Maps the rows of the model's tensors to those of published checkpoints.

Internally projections are fused ([q | k | v] and [q | k | v | mlp] rows) and rotary pairs are half
a head apart. Open-Sora v2 stores them as separate tensors; FLUX.1 stores them fused with adjacent
rotary pairs. Import, export and conversion all use one list of pieces.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from vidgen.models.mmdit.config import MMDiTConfig
from vidgen.models.tensor_files import Shapes

Layout = Literal["open-sora", "flux", "vidgen"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
TIME_FREQUENCIES = 256  # width of the sinusoidal embedding of t and of the guidance


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
    """Rows of an internal tensor, and their location in a published file."""

    internal: str
    start: int
    stop: int
    published: str
    row: int  # first row in the published tensor
    interleaved: bool  # rotary pairs are adjacent there, half a head apart here

    @property
    def rows(self) -> int:
        return self.stop - self.start


def pieces(config: MMDiTConfig, layout: Layout) -> list[Piece]:
    """All rows of all tensors, once each, with the same pieces in every layout."""
    width = config.hidden_size
    found = []
    for name, (rows, *_) in tensor_shapes(config).items():
        stem, _, kind = name.rpartition(".")  # kind: weight, bias or scale
        if stem.endswith((".qkv", ".linear1")):
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
    """Copy and permute rotary pairs: to_half from adjacent to half a head apart, False back."""
    if to_half is None:
        out.copy_(rows)
        return
    heads, half, rest = rows.shape[0] // head_dim, head_dim // 2, rows.shape[1:]
    apart, neighbours = (heads, 2, half, *rest), (heads, half, 2, *rest)
    if to_half:
        out.view(apart).copy_(rows.view(neighbours).transpose(1, 2))
    else:
        out.view(neighbours).copy_(rows.view(apart).transpose(1, 2))


def by_published(found: Iterable[Piece]) -> dict[str, list[Piece]]:
    groups: dict[str, list[Piece]] = {}
    for piece in found:
        groups.setdefault(piece.published, []).append(piece)
    return groups


def by_internal(found: Iterable[Piece]) -> dict[str, list[Piece]]:
    groups: dict[str, list[Piece]] = {}
    for piece in found:
        groups.setdefault(piece.internal, []).append(piece)
    return groups
