"""A damaged or lost checkpoint: the run resumes from an undamaged one, or says what is gone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vidgen.errors import UserError
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe
from vidgen.runtime import checkpoint
from vidgen.train import Trainer
from vidgen.train.report.metrics import read_metrics
from vidgen.train.run_dir import lock
from vidgen.train.run_dir.folder import make_run_dir
from vidgen.train.run_dir.start import candidates

Main = Callable[..., tuple[int, str, str]]
OPTIONS = ("train.steps=6", "checkpoint.every=2")


@pytest.fixture(scope="module")
def straight(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of six steps with checkpoints of 2, 4 and 6."""
    torch.set_num_threads(1)
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    Trainer(read_recipe(recipe_file, [f"run_dir={run_dir}", *OPTIONS], Recipe)).run()
    return run_dir


@pytest.fixture
def copied(straight: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(straight, tmp_path / "run"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def shard(step: Path, group: str = "model") -> Path:
    return next(step.glob(f"{group}-*.safetensors"))


def dangling(step: Path) -> None:
    shutil.rmtree(step)
    step.symlink_to("/nowhere/step")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a tensor's byte": lambda step: flip(shard(step), -20000),
    "the moments' byte": lambda step: flip(shard(step, "optim"), -20000),
    "a short shard": lambda step: shard(step).write_bytes(shard(step).read_bytes()[:5000]),
    "an empty shard": lambda step: shard(step).write_bytes(b""),
    "a missing shard": lambda step: shard(step).unlink(),
    "a manifest's byte": lambda step: flip(step / "manifest.json", 300),
    "an empty manifest": lambda step: (step / "manifest.json").write_bytes(b""),
    "a missing manifest": lambda step: (step / "manifest.json").unlink(),
    "an object's byte": lambda step: flip(step / "loader.json", 20),
    "a missing object": lambda step: (step / "trainer.json").unlink(),
    "a dangling link": dangling,
}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_newest_undamaged_checkpoint_resumes_and_nothing_is_removed(
    damage: str,
    copied: Path,
    straight: Path,
    tiny: Callable[..., Recipe],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = copied / "checkpoints"
    newest = root / "step-000000006"
    DAMAGE[damage](newest)
    before = content(newest)
    trainer = Trainer(tiny(*OPTIONS))
    assert trainer.step == 4
    kept = root / "damaged" / newest.name
    assert content(kept) == before
    assert not newest.exists()
    trainer.run()
    shown = capsys.readouterr().out
    assert f"a checkpoint is damaged: {newest}" in shown
    assert f"{newest} is kept as {kept}" in shown
    assert "resumed at step 4 of 6" in shown
    losses = [[r["loss"] for r in read_metrics(run)] for run in (copied, straight)]
    assert losses[0] == losses[1]
    assert checkpoint.steps(root) == [2, 4, 6]
    assert checkpoint.verify(newest) == []
    assert content(kept) == before
    assert Trainer(tiny(*OPTIONS)).step == 6  # the damage is behind


def test_names_that_are_taken_get_a_number(copied: Path, tiny: Callable[..., Recipe]) -> None:
    root = copied / "checkpoints"
    for step in (6, 4):
        flip(shard(root / f"step-{step:09d}"), -20000)
    (root / "damaged" / "step-000000006").mkdir(parents=True)
    assert Trainer(tiny(*OPTIONS)).step == 2
    names = sorted(path.name for path in (root / "damaged").iterdir())
    assert names == ["step-000000004", "step-000000006", "step-000000006-2"]


def test_where_all_are_damaged_none_is_moved(copied: Path, tiny: Callable[..., Recipe]) -> None:
    root = copied / "checkpoints"
    for step in root.iterdir():
        flip(shard(step), -20000)
    with pytest.raises(UserError, match=r"all 3 checkpoints are damaged; the newest: .*step-0000"):
        Trainer(tiny(*OPTIONS))
    assert checkpoint.steps(root) == [2, 4, 6]


def test_another_recipe_is_no_damage(copied: Path, tiny: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match="was trained with another model"):
        Trainer(tiny(*OPTIONS, "model.mlp_ratio=2"))
    assert not (copied / "checkpoints" / "damaged").exists()


def test_from_chooses_a_step(
    copied: Path, recipe_file: Path, vidgen_main: Main, tiny: Callable[..., Recipe]
) -> None:
    run = ("train", recipe_file, f"run_dir={copied}", *OPTIONS)
    root = copied / "checkpoints"
    code, _, said = vidgen_main(*run, "--from", "3")
    assert code == 2
    assert "--from 3: " in said
    assert "has no checkpoint of that step; it has 2, 4, 6" in said
    code, _, said = vidgen_main(*run, "--from", "2", "--fresh")
    assert (code, "give one of them" in said) == (2, True)

    code, shown, _ = vidgen_main(*run, "--from", "2", "--stop-after", "3")
    assert code == 0
    assert "resumed at step 2 of 6" in shown
    assert checkpoint.steps(root) == [2, 3]
    assert checkpoint.steps(root / "newer") == [4, 6]
    assert checkpoint.verify(root / "newer" / "step-000000006") == []
    assert Trainer(tiny(*OPTIONS)).step == 3  # a restart resumes what was chosen

    flip(shard(root / "step-000000002"), -20000)
    code, _, said = vidgen_main(*run, "--from", "2")
    assert code == 2
    assert "step-000000002/model-00000-of-00001.safetensors is damaged" in said
    assert checkpoint.steps(root) == [2, 3]


def _two_ranks(rank: int, world: int, folder: Path, recipe_file: str) -> list[Any]:
    """Damage that one rank alone reads: both resume from the same older step."""
    import socket
    import time

    import torch.distributed as dist

    overrides = [f"run_dir={folder / 'run'}", *OPTIONS]
    overrides.append(
        "data.buckets=!replace {'32px_ar1:1': {1: {batch: 2}, 9: {batch: 2}, 17: {batch: 1}}}"
    )
    import os

    found: list[Any] = []
    for number in range(2):
        port = folder / f"port-{number}"
        if rank == 0:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port.with_suffix(".tmp").write_text(str(probe.getsockname()[1]))
            port.with_suffix(".tmp").rename(port)
        while not port.exists():
            time.sleep(0.01)
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port.read_text(),
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": "2",
        }
        trainer = Trainer(read_recipe(recipe_file, overrides, Recipe))
        found.append(trainer.step)
        trainer.run()
        if dist.is_initialized():
            dist.destroy_process_group()
        if rank == 0 and number == 0:
            newest = folder / "run" / "checkpoints" / "step-000000006"
            flip(newest / "model-00001-of-00002.safetensors", -5000)
    return [*found, trainer._notes]


@pytest.mark.slow
def test_ranks_agree_on_the_step(ranks: Callable[..., list[Any]], recipe_file: Path) -> None:
    first, second = ranks(_two_ranks, 2, str(recipe_file))
    assert first == second
    assert first[:2] == [0, 4]
    assert "model-00001-of-00002.safetensors is damaged" in first[2][0]


# What is left of a run whose checkpoints are lost -------------------------------------------------


def emptied(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def half_written(root: Path) -> None:
    emptied(root)
    (root / ".step-000000006.writing").mkdir()


def linked_to_nothing(root: Path) -> None:
    shutil.rmtree(root)
    root.symlink_to("/nowhere/checkpoints")


def a_file(root: Path) -> None:
    shutil.rmtree(root)
    root.write_text("")


LOSSES: dict[str, tuple[Callable[[Path], object], str]] = {
    "is empty": (emptied, "is empty, but"),
    "is gone": (shutil.rmtree, "does not exist, but"),
    "is half written": (half_written, "holds no complete checkpoint (it holds .step-000000006.w"),
    "is a dangling link": (linked_to_nothing, "is a link to /nowhere/checkpoints, which does not"),
    "is a file": (a_file, "is not a folder, but"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_lost_checkpoints_are_refused_without_fresh(
    loss: str, copied: Path, recipe_file: Path, vidgen_main: Main
) -> None:
    lose, message = LOSSES[loss]
    lose(copied / "checkpoints")
    history = (copied / "metrics.jsonl").read_bytes()
    run = ("train", recipe_file, f"run_dir={copied}", *OPTIONS)
    code, _, said = vidgen_main(*run)
    assert code == 2
    assert f"{copied / 'checkpoints'} {message}" in said
    assert "last_saved.json says that step 6 was saved" in said
    assert "pass --fresh" in said
    assert (copied / "metrics.jsonl").read_bytes() == history
    code, shown, _ = vidgen_main(*run, "--fresh", "--stop-after", "1")
    assert code == 0
    assert "step 1/6" in shown
    assert (copied.with_name("run-old1") / "metrics.jsonl").read_bytes() == history


@pytest.mark.parametrize(
    ("files", "lost"),
    [
        ({}, None),
        ({"metrics.jsonl": "", "recipe.yaml": "checkpoint: {every: 5}"}, None),
        # Before its first checkpoint a run has none to lose.
        ({"metrics.jsonl": '{"step": 4}\n', "recipe.yaml": "checkpoint: {every: 5}"}, None),
        ({"metrics.jsonl": '{"step": 5}\n', "recipe.yaml": "checkpoint: {every: 5}"}, "step 5 of"),
        ({"metrics.jsonl": '{"step": 9}\n{"st', "recipe.yaml": "checkpoint: ["}, "reaches step 9"),
        ({"metrics.jsonl": '{"step": 9}\n'}, "a run that saved every 6 steps"),
        ({"metrics.jsonl": '{"step": 4}\n', "last_saved.json": '{"step": 3}'}, "step 3 was saved"),
        ({"last_saved.json": '{"step": 3}'}, "step 3 was saved"),
        ({"recipe.yaml": "checkpoint: {every: 5}"}, "metrics.jsonl is gone too"),
        ({"metrics.jsonl": '{"step": 3}\n', "last_saved.json": "torn {"}, None),
    ],
)
def test_what_says_that_there_were_checkpoints(
    files: dict[str, str], lost: str | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    if lost is None:
        assert candidates(tmp_path, fresh=False, step=None, every=6) == []
        return
    with pytest.raises(UserError) as caught:
        candidates(tmp_path, fresh=False, step=None, every=6)
    assert lost in str(caught.value)
    assert "\n" not in str(caught.value)
    assert candidates(tmp_path, fresh=True, step=None, every=6) == []


def test_a_new_run_directory_has_lost_nothing(tmp_path: Path) -> None:
    make_run_dir(tmp_path / "run")
    held = lock.lock(tmp_path / "run")
    assert candidates(tmp_path / "run", fresh=False, step=None, every=1) == []
    lock.unlock(held)
    assert json.loads((tmp_path / "run" / lock.NAME).read_text())["released"]
