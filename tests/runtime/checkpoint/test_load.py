"""Loading: what does not fit and what is damaged name themselves."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from vidgen.errors import UserError
from vidgen.runtime import checkpoint
from vidgen.runtime.checkpoint.layout import MANIFEST, read_manifest


def tensors() -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return {
        "model": {"w": torch.randn(4, 5), "b": torch.arange(3), "scale": torch.tensor(2.0)},
        "ema": {"w": torch.randn(4, 5).bfloat16(), "none": torch.empty(0, 3)},
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    objects = {"loader": {"epoch": 3}, "rng": [1, 2, 3]}
    return checkpoint.save(tmp_path, 10, tensors(), objects).wait()


def empty_like(groups: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    return {g: {n: torch.zeros_like(t) for n, t in m.items()} for g, m in groups.items()}


def test_everything_comes_back_in_place(saved: Path) -> None:
    target = empty_like(tensors())
    target["model"]["w"] = torch.nn.Parameter(target["model"]["w"])
    target["ema"]["w"] = torch.zeros(5, 4).bfloat16().t()  # not contiguous
    before = {id(t) for m in target.values() for t in m.values()}
    assert checkpoint.load(saved, target) == {"loader": {"epoch": 3}, "rng": [1, 2, 3]}
    assert {id(t) for m in target.values() for t in m.values()} == before
    for group, members in tensors().items():
        for name, tensor in members.items():
            assert torch.equal(target[group][name], tensor)
    assert checkpoint.verify(saved) == []


def test_a_group_can_be_loaded_alone(saved: Path) -> None:
    assert torch.equal(checkpoint.read_tensors(saved, "ema")["w"], tensors()["ema"]["w"])
    target = empty_like(tensors())
    checkpoint.load(saved, {"ema": target["ema"]})
    assert not target["model"]["w"].any()
    with pytest.raises(UserError, match="holds no 'optim'; it holds ema, model"):
        checkpoint.read_tensors(saved, "optim")
    with pytest.raises(UserError, match="holds no 'optim'; it holds ema, model"):
        checkpoint.load(saved, {"optim": {}})


def test_what_does_not_fit_is_named_and_nothing_is_touched(saved: Path) -> None:
    target = empty_like(tensors())
    model = target["model"]
    del model["scale"]
    model["bias"] = torch.zeros(1)
    model["w"] = torch.zeros(5, 4)
    model["b"] = torch.zeros(3)
    with pytest.raises(UserError) as refusal:
        checkpoint.load(saved, target)
    said = str(refusal.value)
    assert "the checkpoint lacks bias" in said
    assert "nothing here takes its scale" in said
    assert "w (F32 [4, 5] there, F32 [5, 4] here)" in said
    assert "b (I64 [3] there, F32 [3] here)" in said
    assert "\n" not in said
    assert not any(t.any() for m in target.values() for t in m.values())


def test_a_path_that_is_no_checkpoint_is_explained(saved: Path) -> None:
    with pytest.raises(UserError, match=r"holds no manifest\.json; expected a directory like"):
        checkpoint.load(saved.parent, {})
    assert "holds no manifest.json" in checkpoint.verify(saved.parent)[0]


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(data)


def test_a_flipped_byte_anywhere_is_named_by_file_and_tensor(saved: Path) -> None:
    owners: dict[tuple[str, int], str] = {}
    for group, entries in read_manifest(saved).tensors.items():
        for name, entry in entries.items():
            for part in entry.slices:
                size = part.box.numel * tensors()[group][name].itemsize
                for at in range(part.offset, part.offset + size):
                    owners[part.file, at] = f"{group}/{name}"
    for name in os.listdir(saved):
        file = saved / name
        original = file.read_bytes()
        for at in [*range(0, len(original), 97), len(original) - 1]:
            flip(file, at)
            problems = checkpoint.verify(saved)
            if name == MANIFEST and not problems:
                # Only white space and the like can change unseen, and it changes nothing.
                assert len(read_manifest(saved).tensors) == 2
            else:
                assert len(problems) == 1
                assert str(file) in problems[0]
                assert owners.get((name, at), "damaged") in problems[0]
            file.write_bytes(original)
    assert checkpoint.verify(saved) == []


def test_damage_stops_a_load(saved: Path) -> None:
    file = saved / "model-00000-of-00001.safetensors"
    size = file.stat().st_size
    flip(file, size - 1)
    with pytest.raises(UserError, match=r"model-00000-of-00001.safetensors is damaged at model/"):
        checkpoint.load(saved, empty_like(tensors()))
    checkpoint.load(saved, {"ema": empty_like(tensors())["ema"]})  # the other file is whole


@pytest.mark.parametrize("length", [0, 100, 4096, -1])
def test_a_shortened_file_is_named(saved: Path, length: int) -> None:
    file = saved / "model-00000-of-00001.safetensors"
    os.truncate(file, length if length >= 0 else file.stat().st_size - 1)
    assert any(f"{file} is damaged" in p for p in checkpoint.verify(saved))
    with pytest.raises(UserError, match=r"is damaged at model/.*: it ends at byte"):
        checkpoint.load(saved, empty_like(tensors()))


def test_a_missing_file_is_named(saved: Path) -> None:
    (saved / "loader.json").unlink()
    (saved / "ema-00000-of-00001.safetensors").unlink()
    problems = checkpoint.verify(saved)
    assert len(problems) == 2
    assert "loader.json cannot be read" in " ".join(problems)
    with pytest.raises(UserError, match=r"cannot be read for ema/w: No such file"):
        checkpoint.load(saved, empty_like(tensors()))
    with pytest.raises(UserError, match=r"loader\.json cannot be read"):
        checkpoint.read_objects(saved)


def test_a_checkpoint_can_be_moved(saved: Path, tmp_path: Path) -> None:
    moved = shutil.move(saved, tmp_path / "elsewhere")
    assert checkpoint.verify(moved) == []
