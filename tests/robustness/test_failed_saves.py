"""A checkpoint that cannot be written: reported at once, tried again, and the run ends in time."""

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vidgen.errors import UserError
from vidgen.recipe.schema import Recipe
from vidgen.runtime import checkpoint
from vidgen.runtime.checkpoint import transfer
from vidgen.train import Trainer
from vidgen.train.report.metrics import MetricsFile, read_metrics
from vidgen.train.run_dir import saves

MakeRecipe = Callable[..., Recipe]
Fail = Callable[[str, str], int]  # (call, path): an errno, or 0


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saves, "FIRST_RETRY_S", 0.0)


@pytest.fixture
def faults() -> Iterator[Callable[[Fail], None]]:
    """`faults(fail)`: what `fail` answers takes the place of a call that writes a checkpoint."""

    def use(fail: Fail) -> None:
        transfer.hook = lambda call, path, _, size: -fail(call, path) or size

    yield use
    transfer.hook = None


def step_of(path: str) -> int:
    found = re.search(r"step-(\d+)", path)
    return int(found[1]) if found else 0


def steps(recipe: Recipe) -> list[int]:
    return checkpoint.steps(Path(recipe.run_dir) / "checkpoints")


CAUSES = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.ESTALE]


@pytest.mark.parametrize("cause", CAUSES, ids=lambda code: errno.errorcode[code])
def test_a_save_that_fails_is_reported_at_once_and_tried_again(
    cause: int,
    tiny: MakeRecipe,
    faults: Callable[[Fail], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed: set[int] = set()

    def first_two(call: str, path: str) -> int:
        if step_of(path) >= 4 and (step_of(path) in failed or len(failed) < 2):
            failed.add(step_of(path))
            return cause
        return 0

    faults(first_two)
    recipe = tiny("train.steps=40", "checkpoint.every=4", "checkpoint.max_unsaved=40")
    Trainer(recipe).run(stop_after=7)
    shown = capsys.readouterr().out
    assert len(failed) == 2
    first, second = sorted(failed)
    assert first == 4
    assert second in (5, 6, 7)  # not the 8 where the next one is due
    line = next(line for line in shown.splitlines() if "checkpoint of step 4 could not" in line)
    assert "the next try is in 0 s" in line
    assert "the run ends at step 40 (checkpoint.max_unsaved)" in line
    assert shown.index(line) < shown.index("step  7/40")
    assert steps(recipe)[-1] == 7
    assert checkpoint.verify(Path(recipe.run_dir) / "checkpoints" / "step-000000007") == []
    assert [r["step"] for r in read_metrics(recipe.run_dir)] == list(range(1, 8))
    assert not checkpoint.leftovers(Path(recipe.run_dir) / "checkpoints")


@pytest.mark.parametrize(("limit", "ends"), [(1, (3, 5)), (3, (5,)), (None, (6,))])
def test_the_run_ends_before_it_risks_more_than_allowed(
    limit: int | None, ends: tuple[int, ...], tiny: MakeRecipe, faults: Callable[[Fail], None]
) -> None:
    faults(lambda call, path: errno.EIO if step_of(path) > 2 else 0)
    more = () if limit is None else (f"checkpoint.max_unsaved={limit}",)
    recipe = tiny("train.steps=40", "checkpoint.every=2", *more)
    with pytest.raises(OSError, match="Input/output error"):
        Trainer(recipe).run()
    last = read_metrics(recipe.run_dir)[-1]["step"]
    assert ends[0] <= last <= ends[-1]
    assert steps(recipe) == [2]
    assert Trainer(recipe).step == 2


# TensorBoard's own thread ends where its file is gone; the run reports it in a line.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("how", ["moved", "replaced"])
def test_a_folder_that_disappears_and_comes_back(
    how: str, tiny: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny("train.steps=40", "checkpoint.every=2", "checkpoint.max_unsaved=20")
    run_dir, away = Path(recipe.run_dir), tmp_path / "away"
    trainer = Trainer(recipe)
    step = trainer.train_step
    found: list[str] = []

    def with_fault() -> dict[str, object]:
        if trainer.step == 2:
            trainer._saves.wait()
            run_dir.rename(away)
            if how == "replaced":
                run_dir.mkdir()
        if trainer.step == 7:
            trainer._saves.wait()
            if how == "replaced":
                found.extend(path.name for path in run_dir.rglob("*"))
                shutil.rmtree(run_dir)
            away.rename(run_dir)
        return step()

    trainer.train_step = with_fault  # type: ignore[method-assign]
    trainer.run(stop_after=9)
    shown = capsys.readouterr().out
    assert f"step 4 could not be written: run_dir {run_dir} is not there any more" in shown
    assert found == []  # nothing is written to what lies under a mount point
    assert steps(recipe)[-1] == 9
    assert [r["step"] for r in read_metrics(run_dir)] == list(range(1, 10))


def test_storage_that_stalls_is_reported_while_training_goes_on(
    tiny: MakeRecipe,
    faults: Callable[[Fail], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(saves, "STALL_S", 0.05)
    recipe = tiny("train.steps=40", "checkpoint.every=3")
    trainer = Trainer(recipe)

    def stall(call: str, path: str) -> int:
        deadline = time.monotonic() + 60
        while call == "write" and trainer.step < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        return 0

    faults(stall)
    step = trainer.train_step

    def slowly() -> dict[str, object]:
        time.sleep(0.1)
        return step()

    trainer.train_step = slowly  # type: ignore[method-assign]
    trainer.run(stop_after=6)
    shown = capsys.readouterr().out
    assert "the checkpoint of step 3 has been under way for 0 s: the storage is slow" in shown
    assert steps(recipe) == [3, 6]


def test_metrics_wait_for_room_on_the_disk(tmp_path: Path) -> None:
    class Full:
        closed = False

        def __init__(self, file: object) -> None:
            self.file, self.room = file, 30

        def write(self, data: bytearray) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            count = self.file.write(data[: self.room])  # type: ignore[attr-defined]
            self.room -= count
            return int(count)

        def close(self) -> None:
            self.file.close()  # type: ignore[attr-defined]

    metrics = MetricsFile(tmp_path, 0)
    metrics._file = disk = Full(metrics._file)  # type: ignore[assignment]
    errors = [metrics.append({"step": step, "loss": 0.5}) for step in range(1, 4)]
    assert [error.errno if error else 0 for error in errors] == [0, errno.ENOSPC, errno.ENOSPC]
    disk.room = 1000
    assert metrics.append({"step": 4, "loss": 0.5}) is None
    metrics.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("link", ["root", "step", "dangling step"])
def test_links_do_not_stop_saving_and_pruning(link: str, tiny: MakeRecipe, tmp_path: Path) -> None:
    recipe = tiny("train.steps=40", "checkpoint.every=2", "checkpoint.keep_last=1")
    root, elsewhere = Path(recipe.run_dir) / "checkpoints", tmp_path / "elsewhere"
    Trainer(recipe).run(stop_after=2)
    linked = root if link == "root" else root / "step-000000002"
    linked.rename(elsewhere)
    linked.symlink_to(elsewhere)
    if link == "dangling step":
        shutil.copytree(elsewhere, root / "step-000000001")  # an older one, to resume from
        manifest = elsewhere / "manifest.json"
        elsewhere.rename(tmp_path / "gone")
        assert not manifest.exists()
        trainer = Trainer(recipe)
        assert (root / "damaged" / "step-000000002").is_symlink()
    else:
        trainer = Trainer(recipe)
    assert trainer.step == 2
    trainer.run(stop_after=6)
    assert steps(recipe) == [6]
    assert not checkpoint.leftovers(root)
    if link == "step":
        assert checkpoint.verify(elsewhere) == []  # its owner's: only the link is removed


def test_no_limit_is_smaller_than_one_step(tiny: MakeRecipe) -> None:
    with pytest.raises(UserError, match=r"checkpoint.max_unsaved is 0: must be greater than 0"):
        tiny("checkpoint.max_unsaved=0")
