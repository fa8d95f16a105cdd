"""torchcodec in the loader; what one decoder must do as the other is in test_video.py."""

import sys
from pathlib import Path
from typing import Any

import pytest

from vidgen.data import DataConfig, open_loader
from vidgen.data.packages import torchcodec
from vidgen.errors import UserError

SMALL: dict[str, Any] = {"crop": "random", "flip": True, "buckets": {"16px": {"5-9": {"batch": 4}}}}


def why_not() -> str:
    try:
        torchcodec("Reading a video")
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_the_same_samples_as_with_pyav(clip_set: Any) -> None:
    read = []
    for decoder in ("pyav", "torchcodec"):
        cfg = DataConfig(manifest=str(clip_set.manifest), workers=1, decoder=decoder, **SMALL)
        with open_loader(cfg, seed=5, rank=0, world=1, device="cpu") as loader:
            read.append([next(loader) for _ in range(4)])
    for one, other in zip(*read, strict=True):
        assert one.keys == other.keys
        assert (one.video_BTHWC.int() - other.video_BTHWC.int()).abs().max() <= 4


def opened(manifest: Path) -> None:
    cfg = DataConfig(manifest=str(manifest), decoder="torchcodec", **SMALL)
    open_loader(cfg, seed=5, rank=0, world=1, device="cpu").close()


def test_a_missing_package_is_named(clip_set: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(UserError, match=r'not installed: pip install "vidgen\[torchcodec\]"'):
        opened(clip_set.manifest)


def test_a_package_that_does_not_load_says_why(
    clip_set: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text(
        'raise RuntimeError("Could not load libtorchcodec.\\nLikely causes:")'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        UserError, match=r"does not load \(Could not load libtorchcodec\.\)\. .*ffmpeg"
    ):
        opened(clip_set.manifest)
