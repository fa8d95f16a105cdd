from pathlib import Path
from typing import Any

import pytest

from vidgen.data.index.manifest import Manifest
from vidgen.data.synthetic.shapes import TRAINED, write_dataset


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of clips with their captions beside them."""
    made = write_dataset(tmp_path / "clips", scenes=TRAINED[:3], clips=((5, 1),), side=32)
    manifest = Manifest.open(made)
    for row in range(len(manifest)):
        manifest[row].path.with_suffix(".txt").write_text(manifest[row].text)
    return tmp_path / "clips"


def test_a_folder_to_a_manifest(vidgen: Any, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "clips.parquet"
    status, shown, err = vidgen("manifest", clips, "--out", out)
    assert status == 0, err
    assert shown == f"{out}: 3 clips, 0 images\n"
    assert "manifest: 100%" in err
    manifest = Manifest.open(out, check="all")
    assert {manifest[row].text for row in range(3)} == {scene.caption for scene in TRAINED[:3]}
    assert vidgen("manifest", clips, "--out", out)[0] == 2  # it is there already


def test_unreadable_clips_are_left_out_when_asked(vidgen: Any, clips: Path, tmp_path: Path) -> None:
    (clips / "a.mp4").write_bytes(b"no video")
    (clips / "a.txt").write_text("broken")
    out = tmp_path / "clips.parquet"
    status, _, err = vidgen("manifest", clips, "--out", out)
    assert status == 2
    assert "1 of 4 clips cannot be used, the first is" in err
    assert not out.exists()
    status, shown, err = vidgen("manifest", clips, "--out", out, "--leave-out")
    assert status == 0, err
    assert "1 left out, for the reasons in" in shown
    assert "a.mp4" in (tmp_path / "clips.left_out.csv").read_text()
    assert len(Manifest.open(out)) == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("nowhere", "--out", "a.parquet"), "nowhere is neither a folder of clips nor a .csv"),
        ((".", "--out", "a.csv"), "--out a.csv does not end in .parquet"),
    ],
)
def test_wrong_arguments(vidgen: Any, argv: tuple[str, ...], message: str) -> None:
    status, _, err = vidgen("manifest", *argv)
    assert status == 2
    assert message in err
