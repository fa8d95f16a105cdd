"""The README's own lines for sampling, from the quickstart's recipe with untrained weights."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vidgen.config import to_dict
from vidgen.data.read.video import probe, read_metadata
from vidgen.models.mmdit import MMDiT
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.runtime import checkpoint

ROOT = Path(__file__).parents[2]
Command = Callable[..., tuple[int, str, str]]


def lines() -> Iterator[list[str]]:
    """Commands in the README that sample from the quickstart's run."""
    text = (ROOT / "README.md").read_text("utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.M | re.S):
        for line in block.splitlines():
            if line.startswith("vidgen sample runs/quickstart"):
                yield shlex.split(line, comments=True)[1:]


@pytest.fixture
def in_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory after `make quickstart`, but for the training."""
    recipe: Any = read_recipe(str(ROOT / "recipes" / "quickstart.yaml"), [], Recipe)
    model = MMDiT(recipe.model)
    model.init_weights(torch.Generator().manual_seed(0))
    root = tmp_path / "runs" / "quickstart" / "checkpoints"
    groups = {"model": dict(model.state_dict()), "ema": dict(model.state_dict())}
    checkpoint.save(root, 1700, groups, {"recipe": to_dict(recipe)}, background=False).wait()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readmes_lines_make_videos(vidgen: Command, in_a_clone: Path) -> None:
    found = list(lines())
    assert len(found) >= 2
    for argv in found:
        status, out, err = vidgen(*argv)
        assert status == 0, err
        for path in out.splitlines():
            assert probe(path).num_frames == 17
            assert read_metadata(path)["recipe"] == "quickstart step-000001700"
    first, again = (in_a_clone / "samples" / f"000{n}.mp4" for n in range(2))
    assert first.read_bytes() == again.read_bytes()  # the second line repeats the first's video


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--frames", "18"), "18 frames: this autoencoder takes 4k+1; the nearest are 17 and 21"),
        (("--height", "60", "--width", "64"), "height 60 is not a multiple of 16"),
        (("--resolution", "big"), '"big" is no resolution'),
        (("--memory", "lots"), "--memory 'lots' is not a valid size; expected e.g. 24GB"),
        (("--memory", "1GB"), "give a larger --memory"),
        (("--context", "2"), "1 ranks cannot be split into teams of 2"),
        (("--condition", "i2v_head", "--ref", "README.md"), "takes no image or video"),
    ],
)
def test_mistakes_are_one_line(
    vidgen: Command, in_a_clone: Path, more: tuple[str, ...], message: str
) -> None:
    (in_a_clone / "README.md").write_text("no picture")
    status, out, err = vidgen("sample", "runs/quickstart", "--prompt", "x", "--steps", "1", *more)
    assert (status, out) == (2, "")
    # The progress bar, if it came to that, is on lines of its own.
    assert err.splitlines()[-1].startswith("vidgen: error: ")
    assert message in err
    assert not list(in_a_clone.glob("samples/*.mp4"))


def test_weights_that_do_not_match_the_recipe(vidgen: Command, in_a_clone: Path) -> None:
    from vidgen.models.mmdit import PRESETS, MMDiTConfig, save_weights

    config: MMDiTConfig = PRESETS["tiny"]
    save_weights(MMDiT(config), in_a_clone / "tiny.safetensors")
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    status, _, err = vidgen("sample", "tiny.safetensors", "--recipe", recipe, "--prompt", "x")
    assert status == 2
    assert err.startswith("vidgen: error: tiny.safetensors: was made with in_channels = 64")
    assert len(err.splitlines()) == 1
