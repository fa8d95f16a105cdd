import contextlib
import io
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidgen.cli.main import main
from vidgen.data.index.manifest import write_manifest
from vidgen.data.read.video import write_video


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


def encode_as_rank(
    rank: int, world: int, folder: Path, recipe: str, clips: str, out: str, port: int
) -> str:
    os.environ.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    )
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = main(["encode", recipe, f"data.manifest={clips}", "--out", out, "--device", "cpu"])
    assert status == 0
    return said.getvalue()


def test_ranks_share_the_clips_and_tell_their_sum(ranks: Any, recipe: Path, clips: Path) -> None:
    out = recipe.parent / "latents"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said = ranks(encode_as_rank, 3, str(recipe), str(clips), str(out), port)
    assert said == [f"{out}: cached 0 / computed 2\n", "", ""]  # one rank has nothing to do
    assert len(list(out.rglob("*.safetensors"))) == 2


def test_help_says_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["encode", "--help"])
    shown = capsys.readouterr().out
    assert "the same command\ncontinues" in shown
    assert "torchrun" in shown


def test_a_cache_of_another_encoder_is_refused(vidgen: Any, recipe: Path, clips: Path) -> None:
    out = recipe.parent / "latents"
    argv = ("encode", recipe, f"data.manifest={clips}", "--out", out, "--device", "cpu")
    assert vidgen(*argv)[0] == 0
    status, _, err = vidgen(*argv, "autoencoder.gain=2")
    assert status == 2
    assert "gain" in err


def test_a_manifest_that_is_not_there(vidgen: Any, recipe: Path) -> None:
    out = recipe.parent / "latents"
    status, _, err = vidgen("encode", recipe, "data.manifest=/nowhere.parquet", "--out", out)
    assert status == 2
    assert "/nowhere.parquet" in err
    assert not out.exists()
