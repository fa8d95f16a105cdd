import sys
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vidgen.data.packages import torchcodec
from vidgen.data.read import video
from vidgen.data.read.video import BadClip, probe, read_metadata, write_video
from vidgen.errors import UserError

Read = Callable[..., np.ndarray]


def does_not_load() -> str:
    try:
        torchcodec("Reading a video")
    except UserError as error:
        return str(error)
    return ""


WITHOUT_TORCHCODEC = does_not_load()


@pytest.fixture(
    params=[
        "pyav",
        pytest.param(
            "torchcodec",
            marks=pytest.mark.skipif(bool(WITHOUT_TORCHCODEC), reason=WITHOUT_TORCHCODEC),
        ),
    ]
)
def read_clip(request: pytest.FixtureRequest) -> Read:
    """What every decoder must do alike."""
    return partial(video.read_clip, decoder=request.param)


def ramp(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Grey frames, each of another level than its 36 neighbours."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[...] = (20 + 6 * (np.arange(count) * 10 % 37))[:, None, None, None]
    return frames


def assert_close(read: np.ndarray, written: np.ndarray, tolerance: int = 3) -> None:
    assert read.shape == written.shape
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - written).max() <= tolerance


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    path = tmp_path_factory.mktemp("long") / "clip.mp4"
    frames = ramp(600)
    write_video(path, frames, fps=30)
    return path, frames


def test_what_is_written_is_read(tmp_path: Path, read_clip: Read) -> None:
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)]
    frames[...] = np.array(colours, np.uint8)[:, None, None]
    write_video(tmp_path / "a.mp4", frames, fps=23.976)
    assert_close(read_clip(tmp_path / "a.mp4", range(5)), frames, tolerance=4)
    info = probe(tmp_path / "a.mp4")
    assert (info.num_frames, info.height, info.width) == (5, 32, 48)
    assert info.fps == pytest.approx(23.976, abs=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_metadata_and_faststart(tmp_path: Path) -> None:
    note = {"prompt": "a réd circle; moving=left", "seed": "3", "vidgen.recipe": "x: 1\n" * 500}
    write_video(tmp_path / "a.mp4", ramp(3), fps=8, metadata=note)
    read = read_metadata(tmp_path / "a.mp4")
    assert {key: read.get(key) for key in note} == note
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("start", [0, 17, 64, 249, 250, 251, 583])
def test_windows_anywhere(long_clip: tuple[Path, np.ndarray], start: int, read_clip: Read) -> None:
    path, frames = long_clip
    indices = range(start, min(start + 33, 600), 2)
    assert_close(read_clip(path, indices), frames[list(indices)])


def test_seeking_decodes_little(
    long_clip: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = long_clip
    decoded = 0

    class Counted:
        def __init__(self, container: Any) -> None:
            self._container = container

        def __getattr__(self, name: str) -> Any:
            return getattr(self._container, name)

        def __enter__(self) -> "Counted":
            return self

        def __exit__(self, *_: object) -> None:
            self._container.close()

        def decode(self, stream: Any) -> Any:
            nonlocal decoded
            for frame in self._container.decode(stream):
                decoded += 1
                yield frame

    real = av.open
    monkeypatch.setattr(av, "open", lambda *a, **k: Counted(real(*a, **k)))
    video.read_clip(path, [510])
    assert decoded <= 20  # the key frame is at 500
    decoded = 0
    video.read_clip(path, [3])
    assert decoded <= 4


def test_variable_frame_rate(tmp_path: Path, read_clip: Read) -> None:
    path, frames = tmp_path / "vfr.mp4", ramp(300)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = 40
        time = 0
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            time += 7 + 50 * (i % 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for start in (10, 100, 233):
        indices = range(start, start + 20)
        assert_close(read_clip(path, indices), frames[list(indices)], tolerance=6)


def test_rotation_is_honoured(tmp_path: Path, read_clip: Read) -> None:
    upright = np.zeros((3, 48, 32, 3), np.uint8)
    upright[:, :24] = [255, 0, 0]  # red over blue
    upright[:, 24:] = [0, 0, 255]
    stored = np.ascontiguousarray(np.rot90(upright, -1, axes=(1, 2)))  # 32x48
    with av.open(str(tmp_path / "r.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.set_display_rotation(90)
        for picture in stored:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(tmp_path / "r.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 90  # counter-clockwise, to display
    info = probe(tmp_path / "r.mp4")
    assert (info.height, info.width) == (48, 32)
    read = read_clip(tmp_path / "r.mp4", range(3), expect=(48, 32))
    assert read.shape == upright.shape
    assert read[0, 6, 16, 0] > 200 > 50 > read[0, 6, 16, 2]
    assert read[0, 42, 16, 2] > 200 > 50 > read[0, 42, 16, 0]


def test_ten_bit(tmp_path: Path, read_clip: Read) -> None:
    frames = ramp(4)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p10le"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    assert_close(read_clip(tmp_path / "a.mp4", range(4)), frames, tolerance=4)


def test_full_range_is_honoured(tmp_path: Path, read_clip: Read) -> None:
    luma = np.full((48, 48), 255, np.uint8)  # white where the range is full
    planar = np.concatenate([luma[:32], np.full((16, 48), 128, np.uint8)])
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
        planar[:16] = 16  # would be black where the range is limited
        frame = av.VideoFrame.from_ndarray(planar, format="yuvj420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    picture = read_clip(tmp_path / "a.mp4", [0])[0]
    assert abs(int(picture[4, 20, 0]) - 16) <= 3
    assert picture[28, 20, 0] >= 252


def test_scale_crop_and_flip(tmp_path: Path, read_clip: Read) -> None:
    frames = np.zeros((2, 32, 96, 3), np.uint8)
    frames[:, :, :32, 0] = frames[:, :, 32:64, 1] = frames[:, :, 64:, 2] = 255
    write_video(tmp_path / "a.mp4", frames, fps=24, crf=0)
    for at, channel in ((0.0, 0), (0.5, 1), (1.0, 2)):
        read = read_clip(tmp_path / "a.mp4", [0, 1], size=(16, 16), crop_at=(0.5, at))
        assert read.shape == (2, 16, 16, 3)
        assert read[0, 8, 8].argmax() == channel
        assert read[0, 8, 8, channel] > 240
    left = read_clip(tmp_path / "a.mp4", [0], size=(32, 64), crop_at=(0.5, 0.0))
    flipped = read_clip(tmp_path / "a.mp4", [0], size=(32, 64), crop_at=(0.5, 0.0), flip=True)
    np.testing.assert_array_equal(flipped, left[:, :, ::-1])


@pytest.mark.parametrize("size", [(31, 45), (17, 100), (64, 64), (1, 1)])
def test_any_size_is_covered(tmp_path: Path, size: tuple[int, int], read_clip: Read) -> None:
    write_video(tmp_path / "a.mp4", np.full((1, 34, 50, 3), 200, np.uint8), fps=24)
    read = read_clip(tmp_path / "a.mp4", [0], size=size, crop_at=(1.0, 1.0))
    assert read.shape == (1, *size, 3)
    assert np.abs(read.astype(int) - 200).max() <= 3  # no black border


def test_reads_into_given_memory(tmp_path: Path, read_clip: Read) -> None:
    write_video(tmp_path / "a.mp4", ramp(3), fps=24)
    slot = np.zeros((2, 3, 32, 48, 3), np.uint8)
    assert read_clip(tmp_path / "a.mp4", range(3), out=slot[1]) is not None
    assert_close(slot[1], ramp(3))
    assert not slot[0].any()
    with pytest.raises(ValueError, match="expected uint8"):
        read_clip(tmp_path / "a.mp4", range(2), out=slot[1])


def test_a_still_image(tmp_path: Path, read_clip: Read) -> None:
    frame = av.VideoFrame.from_ndarray(ramp(4)[3], format="rgb24")
    frame.save(str(tmp_path / "a.png"))
    assert_close(read_clip(tmp_path / "a.png", [0]), ramp(4)[3:])
    info = probe(tmp_path / "a.png")
    assert info.num_frames == 1
    assert info.fps != info.fps  # NaN


def _audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_files_that_cannot_be_read(tmp_path: Path, read_clip: Read) -> None:
    good = tmp_path / "good.mp4"
    write_video(good, ramp(20), fps=24)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video at all" * 50)
    (tmp_path / "half.mp4").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    _audio_only(tmp_path / "sound.mp4")
    for name, reason in [
        ("none.mp4", "No such file"),
        ("empty.mp4", "is an empty file"),
        ("text.mp4", "is none of the containers"),
        ("half.mp4", "ends after 1 frames; frame 1 was wanted"),
        ("sound.mp4", "video stream"),
    ]:
        with pytest.raises(BadClip, match=reason):
            read_clip(tmp_path / name, range(20))
    with pytest.raises(BadClip, match="ends after 20 frames; frame 20 was wanted"):
        read_clip(good, range(21))
    with pytest.raises(BadClip, match="ends after 20 frames; frame 99 was wanted"):
        read_clip(good, [99])
    with pytest.raises(BadClip, match=r"is 32x48 .* the manifest says 48x32"):
        read_clip(good, [0], expect=(48, 32))


def test_a_wrong_extension_is_no_matter(tmp_path: Path, read_clip: Read) -> None:
    write_video(tmp_path / "a.avi", ramp(3), fps=24)
    assert_close(read_clip(tmp_path / "a.avi", range(3)), ramp(3))


@pytest.mark.parametrize("indices", [[], [-1], [3, 2], [2, 2]])
def test_impossible_indices(tmp_path: Path, indices: list[int], read_clip: Read) -> None:
    with pytest.raises(ValueError, match="must ascend"):
        read_clip(tmp_path / "a.mp4", indices)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, ramp(2), fps=24)
    before = path.read_bytes()
    with pytest.raises(UserError, match="both sides must be even"):
        write_video(path, ramp(2, 31), fps=24)
    with pytest.raises(Exception, match=r"metadata|str|encode"):
        write_video(path, ramp(2), fps=24, metadata={"seed": 3})  # type: ignore[dict-item]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r'pip install "vidgen\[video\]"'):
        video.read_clip(tmp_path / "a.mp4", [0])
