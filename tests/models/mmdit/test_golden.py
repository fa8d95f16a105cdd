"""The model against values the published code gave."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from vidgen.models.mmdit import MMDiT, MMDiTConfig
from vidgen.models.mmdit.weights import load_weights, save_weights
from vidgen.runtime import ops

GOLDEN = Path(__file__).parents[2] / "golden"
TOLERANCE = 1e-4


def read(name: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, object]]:
    """Tensors by group (the part of the name before the slash), and the model's config."""
    groups: dict[str, dict[str, Tensor]] = {}
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118
            group, _, rest = key.partition("/")
            groups.setdefault(group, {})[rest] = file.get_tensor(key)
        return groups, {key: json.loads(value) for key, value in file.metadata().items()}


def config_of(said: Mapping[str, object], **more: object) -> MMDiTConfig:
    fields = {**said, **more}
    return MMDiTConfig(**{k: v for k, v in fields.items() if k in MMDiTConfig.__dataclass_fields__})


def run(model: torch.nn.Module, given: dict[str, Tensor], grid: tuple[int, int, int]) -> Tensor:
    out: Tensor = model(
        given["img"],
        grid=grid,
        txt=given["txt"],
        vec=given["y_vec"],
        t=given["timesteps"],
        cond=given.get("cond"),
        guidance=given.get("guidance"),
    )
    return out


def grid_of(img_ids: Tensor) -> tuple[int, int, int]:
    """Position ids run over (frames, rows, columns) in that order, starting at zero."""
    frames, rows, columns = (int(n) + 1 for n in img_ids[0].amax(0))
    positions = [(t, h, w) for t in range(frames) for h in range(rows) for w in range(columns)]
    assert torch.equal(img_ids[0], torch.tensor(positions, dtype=img_ids.dtype))
    return frames, rows, columns


@pytest.fixture(params=["reference", "compiled"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every op in one implementation, or a skip that says which op cannot run in it."""
    name: str = request.param
    for row in ops.table():
        if (row.device, row.implementation) == ("cpu", name) and not row.available:
            pytest.skip(f"{row.op}: {row.reason}")
    with ops.use(name):
        yield name


@pytest.mark.parametrize("file", ["opensora_t2v", "opensora_i2v", "flux_guidance"])
def test_output_loss_and_every_gradient(file: str, implementation: str, tmp_path: Path) -> None:
    golden, said = read(f"mmdit_{file}")
    config = config_of(said)
    model = MMDiT(config)
    load_weights(model, golden["weight"])
    grid = grid_of(golden["input"]["img_ids"])
    assert grid == tuple(said["grid"])  # type: ignore[arg-type]

    out = run(model, golden["input"], grid)
    loss = F.mse_loss(out, golden["target"][""])
    loss.backward()
    torch.testing.assert_close(out, golden["output"][""], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(loss, golden["loss"][""].squeeze(), atol=TOLERANCE, rtol=0)

    # Gradients live in the model's layout; written as weights they come out in the published one.
    gradients = MMDiT(config)
    with torch.no_grad():
        for param, source in zip(gradients.parameters(), model.parameters(), strict=True):
            assert source.grad is not None
            param.copy_(source.grad)
    layout = "flux" if config.guidance_embed else "open-sora"
    save_weights(gradients, tmp_path / "grad.safetensors", layout)
    with safe_open(tmp_path / "grad.safetensors", "pt") as written:
        assert set(written.keys()) == golden["grad"].keys()
        for name, expected in golden["grad"].items():
            found = written.get_tensor(name)
            error = (found - expected).abs().max()
            # Absolute, and a thousandth of the tensor's own size: some gradients are all tiny.
            bound = min(TOLERANCE, 1e-3 * float(expected.abs().max()) + 1e-7)
            assert error <= bound, f"{name}: off by {error:.2e}, allowed {bound:.2e}"


# Inductor's C++ takes long to compile; aot_eager shows as well what the ops must withstand (capture
# in one graph without a break, and its joint backward), so inductor runs once.
@pytest.mark.parametrize(
    ("implementation", "backend"),
    [
        ("reference", "aot_eager"),
        ("compiled", "aot_eager"),
        pytest.param("reference", "inductor", marks=pytest.mark.slow),
    ],
    indirect=["implementation"],
)
def test_compiled_by_torch(implementation: str, backend: str) -> None:
    golden, said = read("mmdit_opensora_i2v")
    model = MMDiT(config_of(said))
    load_weights(model, golden["weight"])
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    out = run(compiled, golden["input"], grid_of(golden["input"]["img_ids"]))
    F.mse_loss(out, golden["target"][""]).backward()
    torch.testing.assert_close(out, golden["output"][""], atol=TOLERANCE, rtol=0)
    for name in ("img_in.weight", "cond_in.bias", "final_layer.linear.weight"):
        grad, expected = model.get_parameter(name).grad, golden["grad"][name]
        torch.testing.assert_close(grad, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("cond_embed", [False, True])
def test_an_image_model_turned_video_model_gives_the_image_model_s_output(cond_embed: bool) -> None:
    golden, said = read("flux_to_opensora")
    given, expected = golden["input"], golden["output"][""]
    grid = grid_of(given["img_ids"])
    video = MMDiT(config_of(said, cond_embed=cond_embed))
    load_weights(video, golden["flux"], adapt=True)
    condition = given if cond_embed else {k: v for k, v in given.items() if k != "cond"}
    with torch.no_grad():
        out = run(video, condition, grid)
    torch.testing.assert_close(out, expected, atol=TOLERANCE, rtol=0)

    image = MMDiT(config_of(said, guidance_embed=True, cond_embed=False))
    load_weights(image, golden["flux"])
    with torch.no_grad():
        image.guidance_in.out_layer.weight.zero_()
        image.guidance_in.out_layer.bias.zero_()
        inputs = {k: v for k, v in given.items() if k != "cond"}
        out = run(image, {**inputs, "guidance": torch.full((2,), 4.0)}, grid)
    torch.testing.assert_close(out, expected, atol=TOLERANCE, rtol=0)


def test_conversion_gives_the_published_conversion_s_weights(tmp_path: Path) -> None:
    golden, said = read("flux_to_opensora")
    has_cond = "cond_in.weight" in golden["opensora"]
    model = MMDiT(config_of(said, cond_embed=has_cond))
    load_weights(model, golden["flux"], adapt=True)
    save_weights(model, tmp_path / "video.safetensors", "open-sora")
    with safe_open(tmp_path / "video.safetensors", "pt") as written:
        assert set(written.keys()) == golden["opensora"].keys()
        for name, expected in golden["opensora"].items():
            assert torch.equal(written.get_tensor(name), expected), name
