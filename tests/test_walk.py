"""README's walk from a folder of videos to a trained model, typed as it stands there."""

import shlex
from pathlib import Path

import pytest

from tests.test_readme import ROOT, blocks
from vidgen.cli.main import main
from vidgen.data.index.manifest import Manifest
from vidgen.data.synthetic.shapes import TRAINED, write_dataset

SMALL = {  # what a test adds to the commands
    "train": ["model.depth=1", "model.depth_single_blocks=1", "checkpoint.every=1"],
    "sample": ["--steps", "2", "--out", "videos"],
}


def walk() -> list[list[str]]:
    """The commands of README's block that begins with `vidgen manifest`."""
    (block,) = (b for b in blocks(ROOT / "README.md", "sh") if b.startswith("vidgen manifest"))
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def test_the_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Manifest.open(write_dataset(tmp_path / "videos", scenes=TRAINED[:8], clips=((33, 2),)))
    for row in range(len(made)):
        made[row].path.with_suffix(".txt").write_text(made[row].text)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)

    shown, trained = [], 0
    for program, command, *arguments in walk():
        assert program == "vidgen"
        more = list(SMALL.get(command, ()))
        if command == "train":
            trained += 1
            more.append(f"train.steps={trained}")
        assert main([command, *arguments, *more]) == 0
        shown.append(capsys.readouterr().out)

    manifest, plan, first, second, _ = shown
    assert "16 clips, 0 images" in manifest
    assert "64px_ar1:1 x 33" in plan
    assert "step 1/1" in first
    assert "resumed at step 1 of 2" in second
    assert list((tmp_path / "videos").glob("*.mp4"))
    assert (tmp_path / "runs/mine/metrics.jsonl").is_file()
