"""A manifest from a folder or a CSV: every clip is in it, or the reader is told which is not."""

from pathlib import Path

import numpy as np
import pytest

from vidgen.data.index.collect import Listed, collect, listed, write_left_out
from vidgen.data.index.manifest import Manifest, write_manifest
from vidgen.data.read.video import write_image, write_video
from vidgen.errors import UserError


def frames(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Shades of grey, one darker than the next."""
    levels = np.linspace(200, 20, count).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    clips = tmp_path / "clips"
    (clips / "more").mkdir(parents=True)
    write_video(clips / "b.mp4", frames(9, 32, 48), fps=24)
    write_video(clips / "more" / "a.mp4", frames(5), fps=12)
    write_image(clips / "c.png", frames(1)[0])
    for path, text in (("b.txt", "a wide\n clip \n"), ("more/a.txt", "inside"), ("c.txt", "still")):
        (clips / path).write_text(text)
    return clips


def test_a_folder_becomes_a_manifest(folder: Path) -> None:
    found = collect(listed(folder), folder.parent, workers=2)
    assert not found.bad
    out = folder.parent / "clips.parquet"
    write_manifest(out, found.rows)
    manifest = Manifest.open(out, check="all")
    clips = [manifest[row] for row in range(len(manifest))]
    assert [(c.text, c.num_frames, c.height, c.width) for c in clips] == [
        ("a wide clip", 9, 32, 48),
        ("still", 1, 32, 32),
        ("inside", 5, 32, 32),
    ]
    assert [clips[0].fps, clips[2].fps] == [24, 12]
    assert not Path(found.rows[0]["path"]).is_absolute()  # the folder can move with its manifest


def test_a_csv_with_motion_scores_and_its_own_order(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    rows = 'path,text,motion,other\nclips/c.png,"one, still",,x\nclips/b.mp4,moving,3.5,y\n'
    table.write_text(rows)
    elsewhere = tmp_path / "lists"
    found = collect(listed(table), elsewhere, workers=1)
    write_manifest(elsewhere / "m.parquet", found.rows)
    manifest = Manifest.open(elsewhere / "m.parquet", check="all")
    assert [manifest[row].text for row in (0, 1)] == ["one, still", "moving"]
    assert [manifest[row].motion for row in (0, 1)] == [None, 3.5]
    assert Path(found.rows[0]["path"]).is_absolute()


def test_bad_clips_are_named_with_the_reason(folder: Path, tmp_path: Path) -> None:
    (folder / "empty.mp4").touch()
    (folder / "empty.txt").write_text("nothing")
    clips = [*listed(folder), Listed(folder / "lost.mp4", "gone")]
    found = collect(clips, tmp_path, workers=3)
    assert len(found.rows) == 3
    assert [path.name for path, _ in found.bad] == ["empty.mp4", "lost.mp4"]
    assert found.bad[0][1] == "is an empty file"
    write_left_out(tmp_path / "left.csv", found.bad)
    assert "empty.mp4,is an empty file" in (tmp_path / "left.csv").read_text()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("clips/d.mp4", "", "1 of 4 clips in .* have no caption .* belongs into d.txt"),
        ("clips/b.txt", " \n", "caption .*b.txt is empty"),
        ("clips/b.mov", "", "b.mov and b.mp4 have one caption for both"),
        ("t.csv", "path,caption\na,b\n", r"lacks the column\(s\) text; it has path, caption"),
        ("t.csv", "path,text\n", "has no rows"),
        ("t.csv", "path,text\na.mp4,\n", "line 2 has no text"),
        ("t.csv", "path,text,motion\na.mp4,b,fast\n", "line 2 has a motion score 'fast'"),
        ("t.csv", 'path,text\na.mp4,"b\n', "is not CSV"),
    ],
)
def test_mistakes(folder: Path, name: str, content: str, message: str) -> None:
    path = folder.parent / name
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        listed(path if path.suffix == ".csv" else folder)


def test_neither_folder_nor_csv(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").touch()
    with pytest.raises(UserError, match="neither a folder of clips nor a"):
        listed(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="holds no clips: files that end in"):
        listed(tmp_path)
