from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidgen.data.manifest import write_manifest
from vidgen.data.video import write_video


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Three clips in a manifest, one of them too short for any bucket."""
    rows = []
    for number, frames in enumerate((17, 17, 3)):
        video = np.random.default_rng(number).integers(0, 255, (frames, 64, 64, 3), np.uint8)
        write_video(tmp_path / f"{number}.mp4", video, 16.0)
        rows.append(
            {
                "path": f"{number}.mp4",
                "text": f"clip {number}",
                "num_frames": frames,
                "height": 64,
                "width": 64,
                "fps": 16.0,
            }
        )
    write_manifest(tmp_path / "clips.parquet", rows)
    return tmp_path / "clips.parquet"


def test_encode_writes_once_and_goes_on(vidgen: Any, recipe: Path, clips: Path) -> None:
    out = recipe.parent / "latents"
    argv = ("encode", recipe, f"data.manifest={clips}", "--out", out, "--device", "cpu")
    status, shown, err = vidgen(*argv)
    assert status == 0, err
    assert shown.endswith("cached 0 / computed 2\n")
    assert len(list(out.rglob("*.safetensors"))) == 2
    assert vidgen(*argv)[1].endswith("cached 2 / computed 0\n")


def test_a_cache_of_another_encoder_is_refused(vidgen: Any, recipe: Path, clips: Path) -> None:
    out = recipe.parent / "latents"
    argv = ("encode", recipe, f"data.manifest={clips}", "--out", out, "--device", "cpu")
    assert vidgen(*argv)[0] == 0
    status, _, err = vidgen(*argv, "autoencoder.gain=2")
    assert status == 2
    assert "gain" in err


def test_a_manifest_that_is_not_there(vidgen: Any, recipe: Path) -> None:
    status, _, err = vidgen("encode", recipe, "data.manifest=/nowhere.parquet", "--out", "x")
    assert status == 2
    assert "/nowhere.parquet" in err
