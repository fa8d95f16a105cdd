import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidgen.data.index.manifest import Manifest, write_manifest
from vidgen.errors import UserError

Make = Callable[[list[dict[str, Any]]], Path]


def test_a_row_comes_back(clip_set: Any) -> None:
    manifest = Manifest.open(clip_set.manifest, check="all")
    assert len(manifest) == len(clip_set.rows)
    clip = manifest[3]
    assert clip.path == clip_set.manifest.parent / "3.mp4"
    assert (clip.text, clip.num_frames, clip.height, clip.width) == ("clip 3", 33, 32, 32)
    assert (clip.fps, clip.motion) == (24.0, 1.5)
    assert manifest[0].motion is None


def test_unknown_rate_is_nan(make_manifest: Make) -> None:
    assert math.isnan(Manifest.open(make_manifest([{"fps": None}]))[0].fps)


def test_hash_is_of_contents_only(make_manifest: Make, tmp_path: Path) -> None:
    path = make_manifest([{"text": text} for text in ("ab", "c", "dé")])
    first = Manifest.open(path)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for i in range(3):
        (moved / f"{i}.mp4").touch()
    pq.write_table(pq.read_table(path), moved / "m.parquet", row_group_size=1, compression="gzip")
    assert Manifest.open(moved / "m.parquet").hash == first.hash
    # The same bytes cut elsewhere are other captions.
    other = Manifest.open(make_manifest([{"text": text} for text in ("a", "bc", "dé")]))
    assert other.hash != first.hash
    changed = {n for n in first.digests if first.digests[n] != other.digests[n]}
    assert changed == {"text"}


def test_digest_of_a_slice_is_its_own(tmp_path: Path) -> None:
    table = pa.table(
        {
            "path": ["a", "b", "c"],
            "text": ["x", "y", "z"],
            **{name: pa.array([1, 2, 3], pa.int32()) for name in ("num_frames", "height", "width")},
            "fps": [1.0, 2.0, 3.0],
        }
    )
    sliced = Manifest(tmp_path / "m", table.slice(1, 2))
    taken = Manifest(tmp_path / "m", table.take([1, 2]))
    assert sliced.hash == taken.hash != Manifest(tmp_path / "m", table.slice(0, 2)).hash


def test_missing_files_are_named(make_manifest: Make) -> None:
    path = make_manifest([{} for _ in range(200)])
    (path.parent / "100.mp4").unlink()
    Manifest.open(path)  # not among those sampled
    with pytest.raises(UserError, match=r"1 of 200 files .* missing, the first is .*100\.mp4"):
        Manifest.open(path, check="all")
    (path.parent / "0.mp4").unlink()
    with pytest.raises(UserError, match=r"1 of 64 files"):
        Manifest.open(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"num_frames": 0}, "num_frames of row 1 is 0"),
        ({"height": None}, "height of row 1 is nan"),
        ({"text": None}, "1 rows have no text"),
    ],
)
def test_bad_values_are_named(make_manifest: Make, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Manifest.open(make_manifest([{}, row]))


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a file"):
        Manifest.open(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("path,text\n")
    with pytest.raises(UserError, match="is not a parquet file"):
        Manifest.open(tmp_path / "text.parquet")
    pq.write_table(pa.table({"path": ["a"], "caption": ["b"]}), tmp_path / "short.parquet")
    with pytest.raises(UserError, match=r"lacks the column\(s\) text, num_frames.* path, caption"):
        Manifest.open(tmp_path / "short.parquet")
    write_manifest(tmp_path / "empty.parquet", [])
    with pytest.raises(UserError, match="has no rows"):
        Manifest.open(tmp_path / "empty.parquet")


def test_wrong_column_type_is_named(tmp_path: Path) -> None:
    columns: dict[str, Any] = {"path": ["a"], "text": ["b"], "num_frames": ["many"]}
    columns |= {"height": [1], "width": [1], "fps": [1.0]}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    with pytest.raises(UserError, match="column num_frames holds string; expected numbers"):
        Manifest.open(tmp_path / "m.parquet")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    row = {"path": "a", "text": "b", "num_frames": 1, "height": 1, "width": 1, "fps": 1.0}
    with pytest.raises(ValueError, match="row 1 lacks text"):
        write_manifest(tmp_path / "m.parquet", [row, {k: row[k] for k in row if k != "text"}])
    with pytest.raises(pa.ArrowInvalid):
        write_manifest(tmp_path / "m.parquet", [row | {"num_frames": "many"}])
    assert list(tmp_path.iterdir()) == []


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r'pip install "vidgen\[video\]"'):
        Manifest.open(tmp_path / "m.parquet")
