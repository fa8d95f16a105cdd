"""Files named as clips that would have FFmpeg read other files."""

from pathlib import Path

import numpy as np
import pytest

from vidgen.data.index.manifest import Manifest, write_manifest
from vidgen.data.read.boundary import container_of, url
from vidgen.data.read.packets import BadClip
from vidgen.data.read.video import probe, read_clip, read_metadata, write_image, write_video
from vidgen.errors import UserError

PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{secret}'\n",
    "dash": '<?xml version="1.0"?><MPD><Period><BaseURL>{secret}</BaseURL></Period></MPD>',
    "sdp": "v=0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8", "a.ffconcat"])
def test_playlists(kind: str, name: str, tmp_path: Path) -> None:
    write_video(tmp_path / "secret.mp4", np.zeros((4, 32, 32, 3), np.uint8), 8)
    path = tmp_path / name
    path.write_text(PLAYLISTS[kind].format(secret=tmp_path / "secret.mp4"))
    for read in (probe, read_metadata, lambda path: read_clip(path, [0])):
        with pytest.raises(BadClip, match="is none of the containers that are read: MP4"):
            read(path)


@pytest.mark.parametrize("name", ["a%03d.png", "a*.png", "concat:a.png", "http:a.png", "-i.png"])
def test_names_are_names_and_no_patterns(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = np.full((8, 8, 3), 77, np.uint8)
    write_image(name, picture)
    write_image("a001.png", picture + 100)
    assert (read_clip(name, [0])[0] == picture).all()
    assert url(Path(name)).startswith("file:/")


@pytest.mark.parametrize("head", [b"", b"\0", b"RIFF1234WAVE", b"GIF89a", b"\x1aE\xdf", b"fLaC"])
def test_other_files(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(head)
    with pytest.raises(BadClip, match=r"is none of|is an empty file"):
        container_of(tmp_path / "a.mp4")


@pytest.mark.parametrize("fps", [0.0, -24.0, float("inf"), -float("inf")])
def test_frame_rates_of_a_manifest(fps: float, tmp_path: Path) -> None:
    row = {"path": "a.mp4", "text": "a", "num_frames": 4, "height": 32, "width": 32, "fps": fps}
    (tmp_path / "a.mp4").touch()
    write_manifest(tmp_path / "a.parquet", [row])
    with pytest.raises(UserError, match=r"fps of row 0 is .*; expected a positive number"):
        Manifest.open(tmp_path / "a.parquet")
