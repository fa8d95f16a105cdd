"""Saving: the files, the snapshot, the errors, and who hears of them."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from vidgen.errors import UserError
from vidgen.runtime import checkpoint
from vidgen.runtime.checkpoint import transfer
from vidgen.runtime.checkpoint.layout import DTYPE_NAMES, MANIFEST, PAGE

ODD = {
    "scalar": torch.tensor(3.0, dtype=torch.bfloat16),
    "empty": torch.empty(0, 4),
    "turned": torch.arange(24.0).reshape(6, 4).t(),
    "strided": torch.arange(20, dtype=torch.int16)[::3],
    "flags": torch.tensor([True, False, True]),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


def state(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((3, 5), value), "b": torch.full((7,), value)}}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def test_other_tools_open_the_files(tmp_path: Path) -> None:
    raw = torch.arange(80, dtype=torch.uint8) % 2
    everything = {str(dtype): raw.clone().view(dtype) for dtype in DTYPE_NAMES} | ODD
    path = checkpoint.save(tmp_path, 5, {"model": everything}, {}).wait()
    file = path / "model-00000-of-00001.safetensors"
    read = load_file(file)
    assert read.keys() == everything.keys()
    for name, tensor in everything.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(bits(read[name]), bits(tensor)), name
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    entries = json.loads((path / MANIFEST).read_bytes())["tensors"]["model"]
    assert min(e["slices"][0]["offset"] for e in entries.values()) == PAGE


def test_what_is_saved_is_what_was_there_when_save_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    real_fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (gate.wait(30), real_fsync(fd)))
    tensors, position = state(1.0), {"row": 1}
    saving = checkpoint.save(tmp_path, 1, tensors, {"loader": position})
    for tensor in tensors["model"].values():
        tensor.fill_(2.0)
    position["row"] = 2
    assert not saving.done()
    assert checkpoint.latest(tmp_path) is None
    gate.set()
    path = saving.wait()
    assert saving.done()
    assert checkpoint.read_objects(path) == {"loader": {"row": 1}}
    for tensor in checkpoint.read_tensors(path, "model").values():
        assert (tensor == 1.0).all()


def fail_writes(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(transfer, "hook", lambda call, *_: -number if call == "write" else 0)


def test_a_failure_nobody_waited_for_surfaces_at_the_next_save_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_writes(patch, errno.EIO)
        unheard = checkpoint.save(tmp_path, 1, state(1.0), {})
        with pytest.raises(OSError, match="Input/output error"):
            checkpoint.save(tmp_path, 2, state(2.0), {})
        assert unheard.done()
        heard = checkpoint.save(tmp_path, 3, state(3.0), {})
        with pytest.raises(OSError, match="Input/output error"):
            heard.wait()
    checkpoint.save(tmp_path, 4, state(4.0), {}).wait()
    assert checkpoint.steps(tmp_path) == [4]


def test_a_save_in_the_foreground_raises_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_writes(patch, errno.ENOSPC)
        with pytest.raises(UserError, match="the disk is full"):
            checkpoint.save(tmp_path, 1, state(1.0), {}, background=False)
    assert checkpoint.save(tmp_path, 1, state(1.0), {}, background=False).done()


def test_a_failure_nobody_heard_of_is_reported_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    program = (
        "import torch; from vidgen.runtime import checkpoint; "
        f"checkpoint.save({str(tmp_path / 'file')!r}, 1, {{'m': {{'w': torch.ones(1)}}}}, {{}})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "step-000000001 was not saved: step 1 was not saved in" in done.stderr


@pytest.mark.gpu
def test_on_a_gpu_what_is_enqueued_before_save_is_in_it_and_what_after_is_not(
    tmp_path: Path,
) -> None:
    size = 4096
    square = torch.eye(size, device="cuda") * 2
    tensor = torch.ones(size, size, device="cuda")
    for step in range(3):
        for _ in range(10):
            tensor = tensor @ square / 2  # still running when save copies
        tensor += 1.0
        saving = checkpoint.save(tmp_path, step, {"model": {"w": tensor}}, {})
        tensor.mul_(3.0)  # enqueued at once, on the stream the copy was ordered on
        got = checkpoint.read_tensors(saving.wait(), "model")["w"]
        assert (got == got[0, 0]).all()
        assert torch.equal(tensor.cpu(), got * 3.0)


def test_a_root_that_cannot_be_one_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a directory this user may write in"):
        checkpoint.save(tmp_path / "file", 1, state(1.0), {}).wait()


def test_which_checkpoints_stay(tmp_path: Path) -> None:
    for step in range(0, 100, 10):
        checkpoint.save(tmp_path, step, state(step), {}, keep_last=2, keep_every=40).wait()
    assert checkpoint.steps(tmp_path) == [0, 40, 80, 90]
    # A run that went back to an earlier step keeps what it writes.
    checkpoint.save(tmp_path, 50, state(-1), {}, keep_last=2).wait()
    assert checkpoint.steps(tmp_path) == [50, 80, 90]


def test_a_step_saved_again_is_replaced(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1.0), {"trainer": {}}).wait()
    path = checkpoint.save(tmp_path, 1, state(2.0), {}).wait()
    assert (checkpoint.read_tensors(path, "model")["w"] == 2.0).all()
    assert sorted(os.listdir(path)) == [MANIFEST, "model-00000-of-00001.safetensors"]
    assert os.listdir(tmp_path) == ["step-000000001"]


@pytest.mark.parametrize(
    ("step", "tensors", "objects", "options"),
    [
        (-1, {}, {}, {}),
        (1, {"Bad/name": {}}, {}, {}),
        (1, {}, {"manifest": {}}, {}),
        (1, {}, {}, {"keep_last": 0}),
        (1, {}, {}, {"keep_every": 0}),
    ],
)
def test_arguments_that_mean_nothing_are_refused(
    tmp_path: Path, step: int, tensors: Any, objects: Any, options: Any
) -> None:
    with pytest.raises(ValueError, match=r"step|name"):
        checkpoint.save(tmp_path, step, tensors, objects, **options)
    assert not os.listdir(tmp_path)
