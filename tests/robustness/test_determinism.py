"""What the bits of a run depend on: a resume says so, and CPU variants agree up to rounding."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from vidgen.recipe.schema import Recipe
from vidgen.runtime import checkpoint, native
from vidgen.train import Trainer
from vidgen.train.report.metrics import read_metrics
from vidgen.train.supervise import run_facts

MakeRecipe = Callable[..., Recipe]
# Kernels sum in another order: rounding of fp32 (6e-8), which AdamW amplifies.
ROUNDING = 1e-4
OPTIONS = ("train.steps=40", "checkpoint.every=2")


def variants() -> tuple[str, ...]:
    module = native.load()
    return () if module is None else tuple(module.cpu_variants())


@pytest.fixture
def use_variant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """`use_variant("avx2")`: as a process started with VIDGEN_CPU=avx2."""
    module = native.require()
    before = module.cpu_variant()

    def use(name: str) -> None:
        monkeypatch.setenv("VIDGEN_CPU", name)
        native._attempt.cache_clear()
        assert native.require().cpu_variant() == name

    yield use
    module.select_cpu_variant(before)
    native._attempt.cache_clear()


def losses(recipe: Recipe) -> list[float]:
    return [record["loss"] for record in read_metrics(recipe.run_dir)]


@pytest.mark.skipif(len(variants()) < 2, reason="need two CPU variants compiled")
def test_each_variant_repeats_its_bits_and_agrees_with_the_others(
    tiny: MakeRecipe, use_variant: Callable[[str], None]
) -> None:
    found: dict[str, list[float]] = {}
    for name in variants():
        use_variant(name)
        for attempt in ("once", "again"):
            recipe = tiny(*OPTIONS, run=f"{name}-{attempt}")
            Trainer(recipe).run(stop_after=3)
            assert found.setdefault(name, losses(recipe)) == losses(recipe)
    first = next(iter(found.values()))
    for other in found.values():
        assert other == pytest.approx(first, rel=ROUNDING)


@pytest.mark.skipif(len(variants()) < 2, reason="need two CPU variants compiled")
def test_a_resume_on_another_variant_says_so(
    tiny: MakeRecipe, use_variant: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    then, now = variants()[0], variants()[-1]
    use_variant(then)
    Trainer(tiny(*OPTIONS)).run(stop_after=2)
    use_variant(now)
    Trainer(tiny(*OPTIONS)).run(stop_after=3)
    shown = capsys.readouterr().out
    (line,) = (line for line in shown.splitlines() if line.startswith("resumed with another env"))
    assert f"the variant of the CPU kernels ({then} -> {now})" in line
    assert f"VIDGEN_CPU ({then} -> {now})" in line


def test_a_resume_with_other_threads_says_so_and_the_same_says_nothing(
    tiny: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(tiny(*OPTIONS)).run(stop_after=2)
    Trainer(tiny(*OPTIONS)).run(stop_after=3)
    assert "resumed with another environment" not in capsys.readouterr().out
    torch.set_num_threads(2)  # the fixture sets it back
    Trainer(tiny(*OPTIONS)).run(stop_after=4)
    assert "resumed with another environment than the checkpoint was saved in: the number of " in (
        capsys.readouterr().out
    )


def test_a_checkpoint_keeps_what_bits_depend_on(tiny: MakeRecipe) -> None:
    recipe = tiny(*OPTIONS)
    Trainer(recipe).run(stop_after=1)
    newest = checkpoint.latest(Path(recipe.run_dir) / "checkpoints")
    assert newest is not None
    kept = checkpoint.read_objects(newest)["environment"]
    assert kept == run_facts.of_resume(torch.device("cpu"), 1)
    assert kept["the version of torch"] == torch.__version__
    for name in kept:
        line = run_facts.changes(kept, {**kept, name: "another"})
        assert line is not None
        assert f"{name} ({kept[name]} -> another)" in line
        assert "\n" not in line
    assert run_facts.changes(kept, kept) is None
    assert run_facts.changes({}, kept) is None  # of an older checkpoint
