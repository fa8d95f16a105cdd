"""What a checkpoint is: its layout, its config, and whether it is complete."""

import difflib
import json
from collections.abc import Iterable
from dataclasses import asdict

from pydantic import TypeAdapter, ValidationError

from vidgen.errors import UserError
from vidgen.models.mmdit.config import PRESETS, MMDiTConfig
from vidgen.models.mmdit.layouts import LAYOUTS, Layout, published_shapes, tensor_shapes
from vidgen.models.tensor_files import TensorSource, check_tensors


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


def imported_layout(source: TensorSource, asked: Layout | None) -> Layout:
    """Of weights that do not note it: from their names, and `asked` where the names are alike.

    Their tensors must be those of one whole MMDiT.
    """
    found = detect_layout(source)
    if found != "open-sora" and asked != "open-sora":
        if asked is None:
            raise UserError(
                f"{source.where}: has fused projections, which FLUX.1 and vidgen name alike but "
                "order differently: say --layout flux or --layout vidgen"
            )
        found = asked
    if asked not in (None, found):
        raise UserError(
            f"{source.where}: has the tensor names of layout {found}; expected those of {asked}"
        )
    check_checkpoint(source, infer_config(source, found), found, set(), set())
    return found


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
    except (ValidationError, ZeroDivisionError, OverflowError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            reason = "; ".join(
                ".".join(map(str, problem["loc"])) + ": " + problem["msg"]
                for problem in error.errors()
            )
        raise UserError(f"{source.where}: its shapes are those of no MMDiT: {reason}") from error


def noted_config(source: TensorSource) -> MMDiTConfig | None:
    if (note := source.metadata.get("vidgen.config")) is None:
        return None
    try:
        return TypeAdapter(MMDiTConfig).validate_json(note)
    except ValidationError as error:
        raise UserError(
            f"{source.where}: notes a model config vidgen cannot read: {note[:200]}"
        ) from error


def notes(config: MMDiTConfig, layout: Layout) -> dict[str, str]:
    """What our files say of themselves, so that nothing need be guessed when they are read."""
    note = {"vidgen.layout": layout, "vidgen.config": json.dumps(asdict(config))}
    return {"format": "pt", **note}


def adaptation(source: TensorSource, config: MMDiTConfig) -> tuple[set[str], set[str]]:
    """The source's tensors to leave out, and the model's to set to zero."""
    left_out: set[str] = set()
    if not config.guidance_embed:
        left_out = {name for name in source.infos if name.startswith("guidance_in.")}
    zeroed = {"cond_in.weight", "cond_in.bias"}
    if not config.cond_embed or zeroed & source.infos.keys():
        zeroed = set()
    return left_out, zeroed


def named_tensors(config: MMDiTConfig, layers: Iterable[str]) -> set[str]:
    """The model's tensors in the layers of these names: `img_in`, `double_blocks.0.img_mlp`."""
    tensors = tensor_shapes(config)
    known = dict.fromkeys(
        ".".join(parts[:end])
        for parts in (name.split(".") for name in tensors)
        for end in range(1, len(parts))
    )
    found: set[str] = set()
    for layer in layers:
        if layer not in known:
            near = difflib.get_close_matches(layer, list(known), n=1, cutoff=0.0)[0]
            raise UserError(f"this model has no layer {layer!r}; the nearest is {near!r}")
        found |= {name for name in tensors if name.startswith(f"{layer}.")}
    return found


# The layers whose shape a field of the config decides, and nothing else of the model.
SHAPED_BY = {
    "in_channels": ("img_in.", "cond_in.", "final_layer.linear."),
    "patch_size": ("img_in.", "cond_in.", "final_layer.linear."),
    "vec_in_dim": ("vector_in.in_layer.",),
    "context_in_dim": ("txt_in.",),
    "cond_embed": ("cond_in.",),
}


def free_fields(config: MMDiTConfig, fresh: set[str]) -> set[str]:
    """Fields in which a source may differ whose tensors `fresh` are not taken from it."""
    names = tensor_shapes(config).keys()
    shaped = {
        field: {name for name in names if name.startswith(layers)}
        for field, layers in SHAPED_BY.items()
    }
    return {field for field, tensors in shaped.items() if tensors and tensors <= fresh}


def check_checkpoint(
    source: TensorSource,
    config: MMDiTConfig,
    layout: Layout,
    left_out: set[str],
    absent: set[str],
) -> None:
    """`left_out` are tensors of the source that may have any shape, `absent` those of the model
    that it need not have; both by their published names."""
    expected = published_shapes(config, layout)
    expected.update({name: source.infos[name].shape for name in left_out})
    check_tensors(source, expected, allowed_missing=absent)
