"""Two ranks on gloo: the same losses as one process, resharded checkpoints, a common stop."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vidgen.recipe.schema import Recipe
from vidgen.runtime import checkpoint
from vidgen.train import Trainer
from vidgen.train.report.metrics import read_metrics

StartRanks = Callable[..., list["subprocess.Popen[str]"]]
HALF = "data.buckets=!replace {'32px_ar1:1': {1: {batch: 2}, 9: {batch: 2}, 17: {batch: 1}}}"
# Ranks sum gradients in another order than one process: rounding of fp32 (6e-8), which AdamW
# amplifies where gradients are small.
ROUNDING = 1e-4


def curve(run_dir: Path) -> list[tuple[float, float]]:
    return [(record["loss"], record["grad_norm"]) for record in read_metrics(run_dir)]


def close(found: list[tuple[float, float]], expected: list[tuple[float, float]]) -> None:
    assert len(found) == len(expected)
    for (loss, norm), (loss0, norm0) in zip(found, expected, strict=True):
        assert loss == pytest.approx(loss0, rel=ROUNDING)
        assert norm == pytest.approx(norm0, rel=10 * ROUNDING)


def finish(children: list["subprocess.Popen[str]"]) -> list[str]:
    shown = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [0] * len(children), "\n".join(shown)
    return shown


@pytest.mark.parametrize(
    ("zero", "more"), [(2, ()), (3, ("recompute.dual=1", "recompute.single=1"))]
)
def test_two_ranks_train_as_one_and_one_goes_on_for_them(
    zero: int,
    more: tuple[str, ...],
    start_ranks: StartRanks,
    tiny: Callable[..., Recipe],
    recipe_file: Path,
    tmp_path: Path,
) -> None:
    one = tiny("train.steps=8", run="one")
    Trainer(one).run()
    expected = curve(tmp_path / "one")

    run_dir = tmp_path / "two"
    options = (f"run_dir={run_dir}", "train.steps=8", HALF, f"parallel.zero={zero}", *more)
    shown = finish(start_ranks(2, "train", recipe_file, *options, "--stop-after", "5"))
    assert "step 5/8" in shown[0]
    assert "step" not in shown[1]  # one rank speaks for all
    close(curve(run_dir), expected[:5])
    newest = checkpoint.latest(run_dir / "checkpoints")
    assert newest is not None
    assert checkpoint.verify(newest) == []
    shards = sorted(path.name for path in newest.glob("ema-*"))
    assert shards == ["ema-00000-of-00002.safetensors", "ema-00001-of-00002.safetensors"]

    # One process with the doubled batch takes over.
    alone = Trainer(tiny("train.steps=8", run="two"))
    assert alone.step == 5
    alone.run()
    close(curve(run_dir), expected)
    for group in ("model", "ema"):
        found, wanted = (
            checkpoint.read_tensors(tmp_path / run / "checkpoints" / "step-000000008", group)
            for run in ("two", "one")
        )
        for name in wanted:
            assert (found[name] - wanted[name]).abs().max() < 5e-3  # at most one AdamW step of lr


@pytest.mark.parametrize("states", ["fp32", "bf16"])
def test_two_ranks_four_ranks_and_two_again_train_as_one(
    states: str,
    start_ranks: StartRanks,
    tiny: Callable[..., Recipe],
    recipe_file: Path,
    tmp_path: Path,
) -> None:
    def clips(batch: int) -> str:
        each = f"{{batch: {batch}}}"
        return f"data.buckets=!replace {{'32px_ar1:1': {{1: {each}, 9: {each}}}}}"

    common = ("train.steps=6", f"optim.states={states}")
    Trainer(tiny(*common, clips(4), run="one")).run()
    run_dir = tmp_path / "many"
    for world, until in ((2, 2), (4, 4), (2, 6)):
        options = (f"run_dir={run_dir}", *common, clips(4 // world))
        finish(start_ranks(world, "train", recipe_file, *options, "--stop-after", str(until)))
        newest = checkpoint.latest(run_dir / "checkpoints")
        assert newest is not None
        assert newest.name == f"step-{until:09d}"
        assert checkpoint.verify(newest) == []
        assert len(list(newest.glob("optim-*"))) == world
    close(curve(run_dir), curve(tmp_path / "one"))


@pytest.mark.parametrize(
    ("world", "options"),
    [
        (2, ("parallel.context=2", "conditions.given_weight=0.25")),
        (4, ("parallel.context=4", "parallel.ulysses=2", "parallel.text=replicated")),
    ],
)
def test_ranks_that_share_a_sample_train_as_one(
    world: int,
    options: tuple[str, ...],
    start_ranks: StartRanks,
    tiny: Callable[..., Recipe],
    recipe_file: Path,
    tmp_path: Path,
) -> None:
    more = ("train.steps=4", "train.accumulate=2", "model.cond_embed=true")
    more += ("conditions.weights={t2v: 1, i2v_head: 2}",)
    objective = [option for option in options if option.startswith("conditions.")]
    Trainer(tiny(*more, *objective, run="one")).run()
    run_dir = tmp_path / "many"
    finish(start_ranks(world, "train", recipe_file, f"run_dir={run_dir}", *more, *options))
    close(curve(run_dir), curve(tmp_path / "one"))


def test_heads_divided_over_ranks_are_whole_in_a_checkpoint(
    start_ranks: StartRanks, tiny: Callable[..., Recipe], recipe_file: Path, tmp_path: Path
) -> None:
    """Two ranks hold half the heads each, then one holds all, then two again: one curve."""
    Trainer(tiny("train.steps=6", run="one")).run()
    expected = curve(tmp_path / "one")
    run_dir = tmp_path / "turns"
    two = (f"run_dir={run_dir}", "train.steps=6", "parallel.tensor=2", "parallel.zero=3")
    finish(start_ranks(2, "train", recipe_file, *two, "--stop-after", "2"))
    Trainer(tiny("train.steps=6", run="turns")).run(stop_after=4)
    finish(start_ranks(2, "train", recipe_file, *two))
    close(curve(run_dir), expected)


def test_a_rank_that_is_told_to_stop_stops_all_at_one_step(
    start_ranks: StartRanks, recipe_file: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    children = start_ranks(
        2, "train", recipe_file, f"run_dir={run_dir}", HALF, "train.steps=1_000_000"
    )
    deadline = time.monotonic() + 300
    while not (run_dir / "metrics.jsonl").exists() or len(read_metrics(run_dir)) < 2:
        assert time.monotonic() < deadline
        assert all(child.poll() is None for child in children)
        time.sleep(0.02)
    children[1].send_signal(signal.SIGTERM)
    shown = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [143, 143], "\n".join(shown)
    newest = checkpoint.latest(run_dir / "checkpoints")
    assert newest is not None
    assert checkpoint.verify(newest) == []
    assert newest.name == f"step-{len(read_metrics(run_dir)):09d}"
    assert f"torchrun --nproc-per-node 2 -m vidgen train {run_dir / 'recipe.yaml'}" in shown[0]
