"""Validation: the same clips and videos whatever the step, and training that does not notice."""

import json
from collections.abc import Callable
from pathlib import Path

from vidgen.recipe.schema import Recipe
from vidgen.train import Trainer
from vidgen.train.report.metrics import read_metrics

PROMPTS = "validate.prompts=[a red circle, a blue square]"


def held_out(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "validation.jsonl").read_text().splitlines()]


def test_held_out_losses_and_videos(
    tiny: Callable[..., Recipe], shapes_manifest: Path, tmp_path: Path
) -> None:
    options = [f"validate.manifest={shapes_manifest}", "validate.every=2", "validate.batches=2"]
    options += [PROMPTS, "validate.frames=9", "validate.sample_steps=2", "train.steps=4"]
    Trainer(tiny(*options, "optim.lr=1e-12", run="still")).run()
    found = held_out(tmp_path / "still")
    assert [record["step"] for record in found] == [0, 2, 4]
    assert list(found[0]["losses"]) == ["0.1", "0.3", "0.5", "0.7", "0.9"]  # type: ignore[call-overload]
    # Weights that hardly move give the same losses: clips, noise and timesteps are the same.
    for a, b in zip(found[0]["losses"].values(), found[2]["losses"].values(), strict=True):  # type: ignore[attr-defined]
        assert abs(a - b) < 1e-5

    Trainer(tiny(*options, run="moving")).run()
    moving = held_out(tmp_path / "moving")
    assert moving[0] == found[0]
    assert moving[2]["losses"] != found[2]["losses"]
    folder = tmp_path / "moving" / "validation"
    for step in (0, 2, 4):
        assert len(list((folder / f"step-{step:09d}").glob("*.mp4"))) == 2
    same = [(tmp_path / run / "validation/step-000000000/0000.mp4") for run in ("still", "moving")]
    assert same[0].read_bytes() == same[1].read_bytes()
    page = (tmp_path / "moving" / "report.html").read_text()
    assert "step 0" in page
    assert "step 4" in page
    assert "validation loss" in page.lower()

    Trainer(tiny("train.steps=4", run="plain")).run()
    curves = [[r["loss"] for r in read_metrics(tmp_path / run)] for run in ("moving", "plain")]
    assert curves[0] == curves[1]
