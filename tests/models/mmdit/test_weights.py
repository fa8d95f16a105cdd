"""Import, export and conversion of published weights."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidgen.errors import UserError
from vidgen.models.mmdit import PRESETS, MMDiT, MMDiTConfig
from vidgen.models.mmdit.convert import convert
from vidgen.models.mmdit.layouts import LAYOUTS, Layout, published_shapes, tensor_shapes
from vidgen.models.mmdit.weights import load_weights, save_weights

KEYS = Path(__file__).parents[2] / "golden" / "keys"
TINY = replace(
    PRESETS["tiny"], in_channels=16, depth=2, vec_in_dim=12, context_in_dim=24, mlp_ratio=2.0
)
IMAGE = replace(TINY, guidance_embed=True, cond_embed=False)
PUBLISHED: tuple[Layout, ...] = ("open-sora", "flux")


def random_tensors(
    config: MMDiTConfig, layout: Layout, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(shape, generator=gen).to(dtype)
        for name, shape in published_shapes(config, layout).items()
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def listed(file: str) -> dict[str, tuple[int, ...]]:
    lines = (KEYS / file).read_text().splitlines()
    rows = (line.split("\t") for line in lines)
    return {name: tuple(int(n) for n in re.findall(r"\d+", shape)) for name, shape in rows}


@pytest.mark.parametrize(
    ("preset", "layout", "file", "parameters"),
    [
        ("opensora_v2", "open-sora", "keys_opensora_v2_mmdit.txt", 11_891_390_528),
        ("opensora_v2_t2v", "open-sora", "keys_opensora_v2_mmdit_t2v_nocond.txt", None),
        ("opensora_v2_dcae", "open-sora", "keys_opensora_v2_dcae_mmdit.txt", 11_891_971_200),
        ("flux_dev", "flux", "keys_flux1_dev_original.txt", 11_901_408_320),
    ],
)
def test_full_size_models_have_the_published_tensors(
    preset: str, layout: Layout, file: str, parameters: int | None
) -> None:
    config = PRESETS[preset]
    assert published_shapes(config, layout) == listed(file)
    with torch.device("meta"):
        model = MMDiT(config)
    inside = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert inside == tensor_shapes(config)
    if parameters:
        assert sum(tensor.numel() for tensor in model.parameters()) == parameters


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_tensors_of_small_configs_are_the_models(qkv_bias: bool) -> None:
    config = replace(TINY, guidance_embed=True, qkv_bias=qkv_bias)
    inside = {name: tuple(tensor.shape) for name, tensor in MMDiT(config).state_dict().items()}
    assert inside == tensor_shapes(config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", [TINY, IMAGE])
def test_a_round_trip_keeps_every_bit(
    tmp_path: Path, config: MMDiTConfig, layout: Layout, dtype: torch.dtype
) -> None:
    published = random_tensors(config, layout, dtype)
    model = MMDiT(config).to(dtype)
    load_weights(model, published, layout=layout)
    save_weights(model, tmp_path / "out.safetensors", layout)
    assert_same(load_file(tmp_path / "out.safetensors"), published)

    again = MMDiT(config).to(dtype)
    load_weights(again, tmp_path / "out.safetensors")  # the layout is found in the file
    assert_same(again.state_dict(), model.state_dict())


def test_flux_rotary_pairs_end_half_a_head_apart() -> None:
    published = random_tensors(IMAGE, "flux")
    model = MMDiT(IMAGE)
    load_weights(model, published)
    half = IMAGE.head_dim // 2
    name = "single_blocks.1.linear1.weight"
    second_k_head = IMAGE.hidden_size + IMAGE.head_dim
    for j in range(half):
        first, second = published[name][second_k_head + 2 * j : second_k_head + 2 * j + 2]
        assert torch.equal(model.state_dict()[name][second_k_head + j], first)
        assert torch.equal(model.state_dict()[name][second_k_head + half + j], second)
    rest = 2 * IMAGE.hidden_size  # values and MLP do not turn
    assert torch.equal(model.state_dict()[name][rest:], published[name][rest:])


@pytest.mark.parametrize("layout", PUBLISHED)
def test_a_meta_model_is_materialised_in_its_dtype(layout: Layout) -> None:
    with torch.device("meta"):
        model = MMDiT(TINY).to(torch.bfloat16)
    published = random_tensors(TINY, layout)
    load_weights(model, published)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.img_in.weight, published["img_in.weight"].bfloat16())


def test_shards_with_and_without_an_index(tmp_path: Path) -> None:
    published = random_tensors(TINY, "open-sora")
    names = sorted(published)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: published[name] for name in part}, tmp_path / file)
    model = MMDiT(TINY)
    load_weights(model, tmp_path)
    assert torch.equal(model.txt_in.weight, published["txt_in.weight"])

    weight_map = {name: file for file, part in halves.items() for name in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "unrelated.safetensors").write_bytes(b"not read")
    model = MMDiT(TINY)
    load_weights(model, tmp_path)
    assert torch.equal(model.txt_in.weight, published["txt_in.weight"])
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"b\.safetensors: cannot be read: No such file"):
        load_weights(model, tmp_path)


@pytest.mark.parametrize("layout", PUBLISHED)
def test_wrong_tensors_are_named(layout: Layout) -> None:
    model = MMDiT(TINY)
    good = random_tensors(TINY, layout)
    missing = {k: v for k, v in good.items() if k != "txt_in.bias"}
    with pytest.raises(UserError, match=r"tensor 'txt_in\.bias' \[64\] is missing$"):
        load_weights(model, missing)
    with pytest.raises(UserError, match=r"tensor 'lora\.up' \[2\] is not part of this model$"):
        load_weights(model, {**good, "lora.up": torch.zeros(2)})
    with pytest.raises(UserError, match=r"'img_in\.weight' is \[64, 8\], expected \[64, 16\]$"):
        load_weights(model, {**good, "img_in.weight": torch.zeros(64, 8)})
    with pytest.raises(UserError, match=r"'img_in\.bias' is torch\.int64, expected a float"):
        load_weights(model, {**good, "img_in.bias": torch.zeros(64, dtype=torch.int64)})
    with pytest.raises(UserError, match="more like these"):
        load_weights(MMDiT(replace(TINY, depth=3)), good)


def test_a_failed_check_leaves_the_model_alone() -> None:
    model = MMDiT(TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError):
        load_weights(model, {**random_tensors(TINY, "flux"), "more": torch.zeros(1)})
    assert_same(model.state_dict(), before)


def test_foreign_checkpoints_are_refused() -> None:
    model = MMDiT(TINY)
    with pytest.raises(UserError, match="holds 'conv', 'linear'; expected an MMDiT in the layout"):
        load_weights(model, {"conv": torch.zeros(1), "linear": torch.zeros(1)})
    with pytest.raises(UserError, match="diffusers layout"):
        load_weights(model, {"transformer_blocks.0.attn.to_q.weight": torch.zeros(1)})


def test_a_state_dict_must_say_whose_it_is() -> None:
    source, target = MMDiT(TINY), MMDiT(TINY)
    with pytest.raises(UserError, match="layout='vidgen'"):
        load_weights(target, source.state_dict())
    load_weights(target, source.state_dict(), layout="vidgen")
    assert_same(target.state_dict(), source.state_dict())


def test_a_noted_config_must_agree(tmp_path: Path) -> None:
    save_weights(MMDiT(TINY), tmp_path / "w.safetensors", "open-sora")
    other = MMDiT(replace(TINY, axes_dim=(16, 8, 8)))
    with pytest.raises(UserError, match=r"axes_dim = \(8, 12, 12\), this model has \(16, 8, 8\)"):
        load_weights(other, tmp_path / "w.safetensors")


def test_a_video_model_starts_from_an_image_model_only_when_asked() -> None:
    published = random_tensors(IMAGE, "flux")
    model = MMDiT(TINY)
    with pytest.raises(UserError, match=r"'cond_in\.weight' .* is missing"):
        load_weights(model, published)
    load_weights(model, published, adapt=True)
    assert not model.cond_in.weight.any()
    assert not model.cond_in.bias.any()
    with pytest.raises(UserError, match=r"'txt_in\.bias' .* is missing"):  # nothing else is let by
        load_weights(model, {k: v for k, v in published.items() if k != "txt_in.bias"}, adapt=True)


@pytest.mark.parametrize("middle", LAYOUTS)
@pytest.mark.parametrize("layout", PUBLISHED)
@pytest.mark.parametrize("config", [TINY, IMAGE])
def test_conversion_there_and_back_keeps_every_bit(
    tmp_path: Path, config: MMDiTConfig, layout: Layout, middle: Layout
) -> None:
    published = random_tensors(config, layout, torch.bfloat16)
    save_file(published, tmp_path / "a.safetensors")
    found = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to=middle)
    assert replace(found, axes_dim=config.axes_dim) == config
    model, direct = MMDiT(config).bfloat16(), MMDiT(config).bfloat16()
    load_weights(model, tmp_path / "b.safetensors")
    load_weights(direct, published)
    assert_same(model.state_dict(), direct.state_dict())
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", to=layout)
    assert_same(load_file(tmp_path / "c.safetensors"), published)


def test_conversion_of_an_image_model_to_a_video_model(tmp_path: Path) -> None:
    published = random_tensors(IMAGE, "flux", torch.bfloat16)
    save_file(published, tmp_path / "flux.safetensors")
    done: list[tuple[int, int]] = []
    config = convert(
        tmp_path / "flux.safetensors",
        tmp_path / "video.safetensors",
        to="open-sora",
        adapt="i2v",
        progress=lambda *at: done.append(at),
    )
    assert (config.guidance_embed, config.cond_embed) == (False, True)
    assert done[-1][0] == done[-1][1] > 0
    written = load_file(tmp_path / "video.safetensors")
    assert {k: tuple(v.shape) for k, v in written.items()} == published_shapes(config, "open-sora")
    assert written["cond_in.weight"].dtype == torch.bfloat16
    assert not written["cond_in.weight"].any()
    convert(
        tmp_path / "flux.safetensors", tmp_path / "t2v.safetensors", to="open-sora", adapt="t2v"
    )
    written.pop("cond_in.weight")
    written.pop("cond_in.bias")
    assert_same(load_file(tmp_path / "t2v.safetensors"), written)


def test_conversion_refuses_what_would_lose_bits(tmp_path: Path) -> None:
    published = random_tensors(TINY, "open-sora")
    name = "double_blocks.0.img_attn.k_proj.weight"
    save_file({**published, name: published[name].bfloat16()}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"k_proj\.weight' is torch\.bfloat16.*without loss"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="flux")
    assert not (tmp_path / "b.safetensors").exists()
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="open-sora")


def test_conversion_minds_its_destination(tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    save_file(random_tensors(TINY, "open-sora"), source)
    with pytest.raises(UserError, match="exists already"):
        convert(source, source, to="flux")
    with pytest.raises(UserError, match="is not a folder"):
        convert(source, tmp_path / "no" / "b.safetensors", to="flux")
    with pytest.raises(UserError, match=r"name it b\.pt\.safetensors"):
        convert(source, tmp_path / "b.pt", to="flux")
    convert(source, source, to="flux", overwrite=True)
    assert "double_blocks.0.img_attn.qkv.weight" in load_file(source)


DEEP = replace(TINY, in_channels=6, patch_size=1)  # other latents; everything inside is the same
NEW = ("img_in", "cond_in", "final_layer")


def drawn(config: MMDiTConfig, seed: int = 3) -> dict[str, Tensor]:
    model = MMDiT(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return dict(model.state_dict())


def load_new(model: MMDiT, source: str | Path | dict[str, Tensor], *layers: str) -> None:
    load_weights(
        model, source, reinitialise=layers or NEW, generator=torch.Generator().manual_seed(3)
    )


@pytest.mark.parametrize(
    ("layout", "noted"),
    # Without its note a vidgen file is taken for FLUX's.
    [*((layout, True) for layout in LAYOUTS), *((layout, False) for layout in PUBLISHED)],
)
def test_named_layers_begin_anew_and_the_rest_is_the_sources(
    tmp_path: Path, layout: Layout, noted: bool
) -> None:
    source = MMDiT(TINY)
    load_weights(source, random_tensors(TINY, layout), layout=layout)
    file = tmp_path / "w.safetensors"
    save_weights(source, file, layout)
    if not noted:
        save_file(load_file(file), file)
    with torch.device("meta"):
        model = MMDiT(DEEP)
    load_new(model, file)
    fresh, kept = drawn(DEEP), source.state_dict()
    for name, tensor in model.state_dict().items():
        expected = fresh if name.startswith(NEW) else kept
        assert torch.equal(tensor, expected[name]), name
    assert model.img_in.weight.any()


def test_layers_the_source_lacks_can_begin_anew() -> None:
    model = MMDiT(TINY)
    published = random_tensors(TINY, "open-sora")
    cut = {k: v for k, v in published.items() if not k.startswith(("cond_in", "single_blocks.1."))}
    load_new(model, cut, "cond_in", "single_blocks.1")
    assert not model.cond_in.weight.any()
    assert not model.single_blocks[1].modulation.lin.weight.any()
    assert model.single_blocks[1].linear1.weight.any()
    assert torch.equal(model.img_in.weight, published["img_in.weight"])


def test_only_the_named_layers_may_differ(tmp_path: Path) -> None:
    published = random_tensors(TINY, "open-sora")
    model = MMDiT(DEEP)
    wrong = {**published, "txt_in.weight": torch.zeros(64, 5)}
    with pytest.raises(UserError, match=r"tensor 'txt_in\.weight' is \[64, 5\], expected"):
        load_new(model, wrong)
    with pytest.raises(UserError, match=r"tensor 'img_in\.weight' is \[64, 16\], expected"):
        load_new(model, published, "final_layer", "cond_in")
    with pytest.raises(UserError, match=r"'final_layer\.other' .* is not part of this model"):
        load_new(model, {**published, "final_layer.other": torch.zeros(3)})
    with pytest.raises(UserError, match=r"'txt_in\.bias' .* is missing"):
        load_new(model, {k: v for k, v in published.items() if k != "txt_in.bias"})
    # A file that notes its config is refused before its shapes are looked at.
    save_weights(MMDiT(TINY), tmp_path / "w.safetensors", "open-sora")
    with pytest.raises(UserError, match="in_channels = 16, this model has 6"):
        load_new(model, tmp_path / "w.safetensors", "img_in", "final_layer")
    with pytest.raises(UserError, match="theta = 10000, this model has 5000"):
        load_new(MMDiT(replace(DEEP, theta=5000)), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("layer", "nearest"),
    [
        ("imgin", "img_in"),
        ("final_layers", "final_layer"),
        ("double_blocks.7.img_mlp", r"double_blocks\.\d\.img_mlp"),
        ("img_in.weight", "img_in"),
        ("", ".+"),
    ],
)
def test_a_layer_that_is_not_there_is_refused_with_the_nearest(layer: str, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"no layer '{layer}'; the nearest is '{nearest}'"):
        load_weights(MMDiT(DEEP), random_tensors(TINY, "flux"), reinitialise=[layer])
