"""A mistake gets one line and exit code 2, and leaves nothing broken."""

import errno
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from vidgen.data.index.manifest import write_manifest
from vidgen.runtime import checkpoint
from vidgen.train.report.metrics import read_metrics

Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def refused(vidgen_main: Main, recipe_file: Path, tmp_path: Path) -> Callable[..., str]:
    """`refused("optim.lr=0")`: the one line that training with this ends in."""

    def call(*overrides: str) -> str:
        code, _, said = vidgen_main("train", recipe_file, f"run_dir={tmp_path / 'run'}", *overrides)
        assert code == 2
        errors = [line for line in said.splitlines() if line.startswith("vidgen: error: ")]
        assert len(errors) == 1, said
        assert said.splitlines()[-1] == errors[0]
        assert "Traceback" not in said
        return errors[0].removeprefix("vidgen: error: ")

    return call


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "did you mean 'optim.lr'?"),
        ("optim.lr=fast", "optim.lr is 'fast': must be a number"),
        ("train.steps=0", "train.steps is 0: must be greater than 0"),
        ("model.in_channels=64", "set model.in_channels=96"),
        ("model.context_in_dim=32", "set model.context_in_dim=16"),
        ("model.vec_in_dim=32", "set model.vec_in_dim=16"),
        ("parallel.context=2", "set parallel.context=1"),
        ("data.manifest=/nowhere.parquet", "manifest /nowhere.parquet is not a file"),
        (
            "data.buckets=!replace {256px: {129: {batch: 1}}}",
            "no batch can be made of the 24 clips",
        ),
        ("data.buckets=!replace {'32px_ar1:1': {9: {batch: 99}}}", "fewer clips than one global"),
        ("data.buckets=!replace {'32px_ar1:1': {10: {batch: 1}}}", "10"),
    ],
)
def test_refused_before_anything_is_built(
    refused: Callable[..., str], override: str, message: str, tmp_path: Path
) -> None:
    assert message in refused(override)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_empty_data_set(refused: Callable[..., str], tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    from vidgen.data.synthetic.shapes import TRAINED, write_dataset

    one = write_dataset(tmp_path / "one", scenes=TRAINED[:1], clips=((1, 1),), side=32)
    parquet.write_table(parquet.read_table(one).slice(0, 0), tmp_path / "empty.parquet")
    assert "has no rows" in refused(f"data.manifest={tmp_path / 'empty.parquet'}")
    (tmp_path / "text.parquet").write_text("path,text\n")
    assert "is not a parquet file" in refused(f"data.manifest={tmp_path / 'text.parquet'}")
    assert pyarrow


def test_a_folder_that_cannot_be_made(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refused(f"run_dir={tmp_path / 'file' / 'run'}")
    assert f"run_dir {tmp_path / 'file' / 'run'} cannot be made" in message


@pytest.fixture
def damaged(shapes_manifest: Path, tmp_path: Path) -> Path:
    """The data set with one clip of 17 frames cut short; its manifest."""
    from pyarrow import parquet

    folder = tmp_path / "damaged"
    folder.mkdir()
    rows = parquet.read_table(shapes_manifest).to_pylist()
    for row in rows:
        shutil.copy(shapes_manifest.parent / row["path"], folder)
    broken = folder / next(row["path"] for row in rows if row["num_frames"] == 17)
    broken.write_bytes(broken.read_bytes()[:200])
    write_manifest(folder / "manifest.parquet", rows)
    return folder / "manifest.parquet"


ONLY_17 = "data.buckets=!replace {'32px_ar1:1': {17: {batch: 4}}}"  # an epoch is 2 steps


def test_a_corrupt_clip_is_skipped_and_counted(
    vidgen_main: Main,
    recipe_file: Path,
    damaged: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = (f"run_dir={tmp_path / 'run'}", f"data.manifest={damaged}", ONLY_17)
    code, shown, _ = vidgen_main("train", recipe_file, *options, "train.steps=3")
    assert code == 0
    assert "1 clip(s) could not be read and were skipped" in shown
    assert [r for r in caplog.messages if "_17_0.mp4" in r and "is skipped" in r]
    assert read_metrics(tmp_path / "run")[-1]["replaced_clips"] >= 1


def test_too_many_corrupt_clips_stop_the_run(refused: Callable[..., str], damaged: Path) -> None:
    message = refused(f"data.manifest={damaged}", ONLY_17, "data.bad_clip_limit=0")
    assert "more than data.bad_clip_limit=0" in message
    assert "_17_0.mp4" in message


def test_another_model_does_not_go_on(
    refused: Callable[..., str], vidgen_main: Main, recipe_file: Path, tmp_path: Path
) -> None:
    run = ("train", recipe_file, f"run_dir={tmp_path / 'run'}", "train.steps=2")
    assert vidgen_main(*run)[0] == 0
    message = refused("model.mlp_ratio=2")
    assert "model.mlp_ratio: 4 -> 2" in message.replace(".0", "")
    assert "--fresh" in message
    assert "text.length: 8 -> 9" in refused("text.length=9")
    assert "seed" in refused("seed=7")
    assert "holds no 'ema'" not in refused("flow.sigma_min=0.1")
    assert vidgen_main(*run, "optim.lr=1e-4", "train.steps=3")[0] == 0  # this may change


def test_a_port_in_use(
    vidgen_main: Main, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in {
            "RANK": 0,
            "LOCAL_RANK": 0,
            "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }.items():
            monkeypatch.setenv(name, str(value))
        code, _, said = vidgen_main("train", recipe_file, f"run_dir={tmp_path / 'run'}")
    assert code == 2
    assert f"rank 0: 127.0.0.1:{port} is in use" in said
    assert f"torchrun --master-port={port + 1}" in said or port == 65535


def test_a_full_disk_leaves_the_older_checkpoint(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, saved = os.fsync, tmp_path / "run" / "checkpoints"

    def full(fd: int) -> None:
        if "step-000000004" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", full)
    message = refused("train.steps=4", "checkpoint.every=2")
    assert "step 4 was not saved" in message
    assert "the disk is full" in message
    assert checkpoint.steps(saved) == [2]
    newest = checkpoint.latest(saved)
    assert newest is not None
    assert checkpoint.verify(newest) == []
    assert [entry.name for entry in saved.iterdir()] == ["step-000000002"]


def test_a_loss_that_is_not_finite_names_the_step_and_the_rows(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    message = refused("optim.lr=1e30", "optim.warmup=0", "checkpoint.every=1", ONLY_17)
    assert message.startswith("step 2: loss ")
    assert "of manifest row(s) " in message
    rows = message.partition("row(s) ")[2].partition(", epoch")[0].split(", ")
    assert len(rows) == 4
    assert {int(row) % 3 for row in rows} == {2}  # of each scene's three clips the last has 17
    assert "step-000000001" in message
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == [1]
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [1]
