"""`vidgen ckpt` on checkpoints of a tiny model, as a trainer would have saved them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vidgen.cli.main import main
from vidgen.errors import UserError
from vidgen.models.mmdit import PRESETS, MMDiT, load_weights, save_weights
from vidgen.models.mmdit.layouts import Layout, published_shapes
from vidgen.runtime import checkpoint
from vidgen.sample import Pipeline

Said = Callable[..., str]


def save(run: Path, step: int, value: float = 0.0) -> Path:
    model = MMDiT(PRESETS["tiny"])
    model.init_weights(torch.Generator().manual_seed(1))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    weights["img_in.bias"][3] += value
    tensors = {
        "model": weights,
        "ema": {name: w + 1 for name, w in weights.items()},
        "optim": {"img_in.bias.step": torch.tensor(float(step))},
    }
    objects = {"trainer": {"step": step}}
    return checkpoint.save(run / "checkpoints", step, tensors, objects).wait()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save(tmp_path / "run", 5)
    save(tmp_path / "run", 10, 0.25)
    return tmp_path / "run"


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    def call(*argv: str | Path, status: int = 0) -> str:
        assert main(["ckpt", *map(str, argv)]) == status
        out, err = capsys.readouterr()
        return err if status else out

    return call


def test_ls_shows_steps_sizes_groups_and_leftovers(run: Path, said: Said) -> None:
    (run / "checkpoints" / ".step-000000011.writing").mkdir()
    lines = said("ls", run).splitlines()
    assert [line.split()[0] for line in lines] == ["5", "10", "half"]
    assert "1 rank(s)" in lines[0]
    assert {"model", "ema", "optim"} <= set(lines[0].split())
    assert ".step-000000011.writing: left by a crash" in lines[2]
    assert said("ls", run / "checkpoints").splitlines() == lines
    (run / "empty").mkdir()
    assert "no checkpoint" in said("ls", run / "empty")


def test_verify_names_file_and_tensor(run: Path, said: Said) -> None:
    assert "step-000000010: complete and undamaged" in said("verify", run)
    file = run / "checkpoints" / "step-000000010" / "optim-00000-of-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    error = said("verify", run, status=2)
    assert f"{file} is damaged at optim/img_in.bias.step" in error
    assert "undamaged" in said("verify", run / "checkpoints" / "step-000000005")


def test_diff_names_tensors_and_how_far_apart_they_are(run: Path, said: Said) -> None:
    old = run / "checkpoints" / "step-000000005"
    lines = said("diff", old, run).splitlines()
    assert lines == [
        "ema/img_in.bias: 1 of 64 elements differ, by 0.25 at most",
        "model/img_in.bias: 1 of 64 elements differ, by 0.25 at most",
        "optim/img_in.bias.step: 1 of 1 elements differ, by 5 at most",
    ]
    assert said("diff", run, run).strip() == "recipe and tensors are equal"


def test_diff_tells_what_only_one_has(tmp_path: Path, said: Said) -> None:
    a = {"model": {"w": torch.zeros(2), "x": torch.tensor([0.0])}}
    a["ema"] = a["model"]
    b = {"model": {"w": torch.zeros(3), "x": torch.tensor([-0.0]), "y": torch.zeros(1)}}
    one = checkpoint.save(tmp_path / "a", 1, a, {}).wait()
    two = checkpoint.save(tmp_path / "b", 1, b, {}).wait()
    assert said("diff", one, two).splitlines() == [
        f"ema: only in {one}",
        "model/w: float32 [2] in the first, float32 [3] in the second",
        "model/x: equal values in other bits",
        f"model/y: only in {two}",
    ]


def test_export_writes_published_names(run: Path, tmp_path: Path, said: Said) -> None:
    out = tmp_path / "out.safetensors"
    said("export", run, out, "--to", "open-sora", "--ema")
    exported = load_file(out)
    shapes = published_shapes(PRESETS["tiny"], "open-sora")
    assert {name: tuple(t.shape) for name, t in exported.items()} == shapes
    ema = checkpoint.read_tensors(run / "checkpoints" / "step-000000010", "ema")
    assert torch.equal(exported["img_in.bias"], ema["img_in.bias"])
    assert "exists already" in said("export", run, out, status=2)


def test_dcp_and_back_changes_nothing(run: Path, tmp_path: Path, said: Said) -> None:
    said("export", run, tmp_path / "dcp", "--to", "dcp")
    said("import", tmp_path / "dcp", tmp_path / "back", "--step", "10")
    assert said("diff", run, tmp_path / "back").strip() == "recipe and tensors are equal"
    assert checkpoint.read_objects(tmp_path / "back" / "step-000000010") == {
        "trainer": {"step": 10},
        "layout": "vidgen",
    }
    again = ("import", tmp_path / "dcp", tmp_path / "other", "--step", "10", "--layout", "flux")
    assert "was exported in layout vidgen" in said(*again, status=2)
    assert "not empty" in said("export", run, tmp_path / "dcp", "--to", "dcp", status=2)


def published(folder: Path, layout: Layout) -> tuple[MMDiT, dict[str, torch.Tensor]]:
    """A model and its weights in a layout, as another program would hold them."""
    model = MMDiT(PRESETS["tiny"])
    model.init_weights(torch.Generator().manual_seed(1))
    with torch.no_grad():  # so that every block and the order of its rows shows in the output
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    save_weights(model, folder / "weights.safetensors", layout)
    return model, load_file(folder / "weights.safetensors")


def output(model: MMDiT) -> torch.Tensor:
    made = torch.Generator().manual_seed(2)
    config = model.config

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=made)

    with torch.no_grad():
        return model(
            normal(1, 12, config.in_channels),
            grid=(3, 2, 2),
            txt=normal(1, 3, config.context_in_dim),
            vec=normal(1, config.vec_in_dim),
            t=torch.tensor([0.3]),
            cond=normal(1, 12, config.cond_channels) if config.cond_embed else None,
            guidance=torch.tensor([4.0]) if config.guidance_embed else None,
        )


NESTINGS = {
    "plain": lambda weights: weights,
    "torch": lambda weights: {
        "model": weights,
        "optimizer": {"state": {"img_in.bias": {"exp_avg": torch.ones(3)}}},
        "epoch": 3,
    },
    "application": lambda weights: {
        "app": {"model": {f"module._orig_mod.{name}": t for name, t in weights.items()}}
    },
}


@pytest.mark.parametrize("layout", ["open-sora", "flux", "vidgen"])
@pytest.mark.parametrize("nesting", NESTINGS)
def test_an_imported_dcp_directory_gives_the_same_output(
    layout: Layout, nesting: str, tmp_path: Path, said: Said
) -> None:
    import torch.distributed.checkpoint as dcp

    model, weights = published(tmp_path, layout)
    state = NESTINGS[nesting](weights)
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    asked = ("--layout", layout) if layout != "open-sora" else ()
    out = said("import", tmp_path / "dcp", tmp_path / "run", "--step", "1", *asked)
    assert f"({layout})" in out
    assert ("left out: " in out) == (nesting == "torch")
    loaded = MMDiT(PRESETS["tiny"])
    load_weights(loaded, tmp_path / "run" / "step-000000001")
    assert torch.equal(output(loaded), output(model))

    with pytest.raises(UserError, match="holds imported weights and no recipe"):
        Pipeline.from_checkpoint(tmp_path / "run" / "step-000000001", "cpu")

    # What the layout means goes along when the step is exported and imported again.
    said("export", tmp_path / "run" / "step-000000001", tmp_path / "dcp2", "--to", "dcp")
    said("import", tmp_path / "dcp2", tmp_path / "again", "--step", "2")
    load_weights(loaded, tmp_path / "again" / "step-000000002")
    assert torch.equal(output(loaded), output(model))


def test_fused_weights_of_an_unknown_layout_are_refused(tmp_path: Path, said: Said) -> None:
    import torch.distributed.checkpoint as dcp

    _, weights = published(tmp_path, "flux")
    dcp.save({"model": weights}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    command = ("import", tmp_path / "dcp", tmp_path / "run", "--step", "1")
    assert "say --layout flux or --layout vidgen" in said(*command, status=2)
    assert "expected those of open-sora" in said(*command, "--layout", "open-sora", status=2)
    assert not (tmp_path / "run").exists()


def test_an_ema_is_imported_and_a_part_of_a_model_is_not(tmp_path: Path, said: Said) -> None:
    import torch.distributed.checkpoint as dcp

    _, weights = published(tmp_path, "open-sora")
    state = {"model": weights, "ema": {name: w + 1 for name, w in weights.items()}}
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    said("import", tmp_path / "dcp", tmp_path / "run", "--step", "1")
    ema = checkpoint.read_tensors(tmp_path / "run" / "step-000000001", "ema")
    assert torch.equal(ema["img_in.bias"], weights["img_in.bias"] + 1)
    del weights["txt_in.bias"]
    dcp.save({"model": weights}, checkpoint_id=tmp_path / "part", no_dist=True)
    error = said("import", tmp_path / "part", tmp_path / "run", "--step", "2", status=2)
    assert "'txt_in.bias' [64] is missing" in error


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"layers": {"w": torch.zeros(6)}, "epoch": 3}, "expected an MMDiT in the layout of"),
        ({"model": {"w": torch.zeros(6)}, "net": {"w": torch.zeros(6)}}, "weights in model, net"),
        ({"model": {"w": torch.zeros(6)}, "critic": {"w": torch.zeros(6)}}, "critic beside model"),
        ({"transformer_blocks": {"0": torch.zeros(6)}}, "is in the diffusers layout"),
        ({"epoch": 3}, "holds no tensors"),
    ],
)
def test_a_dcp_directory_of_anything_else_is_refused(
    state: dict[str, Any], message: str, tmp_path: Path, said: Said
) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    error = said("import", tmp_path / "dcp", tmp_path / "run", "--step", "1", status=2)
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["verify"], "the following arguments are required"),
        (["diff", "a"], "ckpt diff takes 2 path(s), found 1"),
        (["ls", "nowhere"], "nowhere is not a directory"),
        (["verify", "."], "holds no complete checkpoint"),
        (["import", ".", "x"], "import needs the step"),
        (["import", ".", "x", "--step", "1"], "is not a DCP directory"),
    ],
)
def test_mistakes_are_one_line(
    said: Said, argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = said(*argv, status=2)
    assert message in error
    assert error.count("\n") == 1
