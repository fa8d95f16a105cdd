from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vidgen.cli.main import main
from vidgen.models.mmdit import PRESETS
from vidgen.models.mmdit.layouts import published_shapes

IMAGE = replace(PRESETS["tiny"], guidance_embed=True, cond_embed=False)


@pytest.fixture
def flux(tmp_path: Path) -> Path:
    shapes = published_shapes(IMAGE, "flux")
    tensors = {name: torch.rand(shape).bfloat16() for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "flux.safetensors")
    return tmp_path / "flux.safetensors"


def test_an_image_model_becomes_a_video_model(
    flux: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "video.safetensors"
    assert main(["convert", str(flux), str(out), "--to", "open-sora", "--start", "i2v"]) == 0
    expected = published_shapes(replace(IMAGE, guidance_embed=False, cond_embed=True), "open-sora")
    assert {name: tuple(t.shape) for name, t in load_file(out).items()} == expected
    printed = capsys.readouterr().out
    assert "flux.safetensors: flux, " in printed
    assert "hidden_size=64" in printed
    assert "video.safetensors: open-sora, " in printed


def test_mistakes_are_one_line(
    flux: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "video.safetensors")
    assert main(["convert", str(tmp_path / "no.safetensors"), out, "--to", "flux"]) == 2
    assert "cannot be read: No such file" in capsys.readouterr().err
    assert main(["convert", str(flux), out, "--to", "fluks"]) == 2
    assert "invalid choice: 'fluks'" in capsys.readouterr().err
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(flux.read_bytes()[:-100])
    assert main(["convert", str(cut), out, "--to", "flux"]) == 2
    assert "truncated or damaged" in capsys.readouterr().err
    assert not Path(out).exists()
    assert main(["convert", str(flux), str(flux), "--to", "vidgen"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", str(flux), str(flux), "--to", "vidgen", "--force"]) == 0
    with safe_open(flux, "pt") as file:
        assert file.metadata()["vidgen.layout"] == "vidgen"
