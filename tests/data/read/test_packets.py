"""Whatever the file, seeking and skipping give the very frames that decoding all of it gives."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vidgen.data.read.packets import BadClip
from vidgen.data.read.video import read_clip

FRAMES = 150

KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "b-frames in mp4": ("a.mp4", "libx264", {"g": "48", "bf": "3", "b-pyramid": "normal"}),
    "open groups in mp4": (
        "a.mp4",
        "libx264",
        {"x264-params": "open-gop=1:keyint=30:bframes=3:scenecut=0"},
    ),
    "no b-frames in mov": ("a.mov", "libx264", {"g": "40", "bf": "0"}),
    "several slices in mp4": ("a.mp4", "libx264", {"g": "70", "x264-params": "slices=3:bframes=2"}),
    "intra refresh in mp4": ("a.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=25"}),
    "fragments": ("a.mp4", "libx264", {"g": "32", "movflags": "frag_keyframe+empty_moov"}),
    "matroska": ("a.mkv", "libx264", {"g": "48", "bf": "3"}),
    "transport stream": ("a.ts", "libx264", {"g": "48", "bf": "2"}),
    "mpeg4 in avi": ("a.avi", "mpeg4", {"g": "24"}),
    "mpeg4 in mp4": ("a.mp4", "mpeg4", {"g": "24", "bf": "2"}),
    "vp9 in webm": ("a.webm", "libvpx-vp9", {"g": "40", "deadline": "realtime", "cpu-used": "8"}),
    "vp8 in webm": (
        "a.webm",
        "libvpx",
        {"g": "40", "deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1"},
    ),
    "hevc in mp4": (
        "a.mp4",
        "libx265",
        {"preset": "ultrafast", "x265-params": "keyint=32:bframes=4:log-level=none:pools=1"},
    ),
    "av1 in mp4": ("a.mp4", "libsvtav1", {"g": "32", "preset": "13"}),
}


def write(path: Path, codec: str, options: dict[str, str], frames: int = FRAMES) -> None:
    """Blocks of noise that drift, so that every frame differs from every other."""
    rng = np.random.default_rng(0)
    field = np.repeat(np.repeat(rng.integers(0, 255, (40, 60, 3), np.uint8), 8, 0), 8, 1)
    options = dict(options)
    flags = {"movflags": options.pop("movflags")} if "movflags" in options else {}
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this PyAV has no encoder {codec}")
    with av.open(str(path), "w", options=flags) as container:
        stream = container.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = options
        for i in range(frames):
            picture = np.roll(field, (-3 * i, 2 * i), (0, 1))[:64, :96]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def all_frames(path: Path) -> np.ndarray:
    """By plain decoding from the start; scaled as the reader does, in one window."""
    with av.open(str(path)) as container:
        count = sum(1 for _ in container.decode(video=0))
    frames = []
    with av.open(str(path)) as container:
        from vidgen.data.read.scale import ToRGB

        convert = ToRGB((32, 48), (0.5, 0.5))
        frames = [convert(frame).copy() for frame in container.decode(video=0)]
    assert len(frames) == count
    return np.stack(frames)


@pytest.mark.parametrize("kind", KINDS)
def test_any_window_is_what_plain_decoding_gives(kind: str, tmp_path: Path) -> None:
    name, codec, options = KINDS[kind]
    path = tmp_path / name
    write(path, codec, options)
    expected = all_frames(path)
    assert len(expected) >= FRAMES - 5  # intra refresh has no key frame but the first
    assert len({frame.tobytes() for frame in expected}) == len(expected)
    rng = np.random.default_rng(1)
    windows = [range(len(expected)), range(9), range(len(expected) - 9, len(expected))]
    for _ in range(12):
        step, start = int(rng.integers(1, 4)), int(rng.integers(0, len(expected) - 34))
        windows.append(range(start, start + 33, step))
    for window in windows:
        read = read_clip(path, window, size=(32, 48))
        wrong = [i for i, r in zip(window, read, strict=True) if (r != expected[i]).any()]
        assert not wrong, (window, wrong)


def test_a_long_file_is_not_read_to_find_a_late_frame(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "long.mp4"
    write(path, "libx264", {"g": "50", "bf": "3", "preset": "ultrafast"}, frames=10_000)
    import vidgen.data.read.packets as module

    read = 0
    real = module._packets

    def counted(*args: Any) -> Any:
        nonlocal read
        for packet in real(*args):
            read += 1
            yield packet

    monkeypatch.setattr(module, "_packets", counted)
    clip = read_clip(path, range(9_900, 9_933))
    assert clip.shape == (33, 64, 96, 3)
    assert read < 110  # 33, up to 50 before them, and a few
    monkeypatch.undo()
    assert (read_clip(path, [9_932]) == clip[-1:]).all()
    with pytest.raises(BadClip, match="10000 frames; frame 10000 was wanted"):
        read_clip(path, [9_999, 10_000])
