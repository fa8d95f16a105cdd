"""Training from a cache of latents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vidgen.errors import UserError
from vidgen.train import Trainer
from vidgen.train.config import Recipe
from vidgen.train.metrics import read_metrics

MakeRecipe = Callable[..., Recipe]


def losses(recipe: Recipe) -> list[tuple[float, float]]:
    Trainer(recipe).run()
    return [(r["loss"], r["grad_norm"]) for r in read_metrics(Path(recipe.run_dir))]


def test_a_run_from_the_cache_is_the_run_that_made_it_without_encoders(
    tiny: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def recipe(name: str) -> Recipe:
        return tiny(
            f"data.latents={tmp_path / 'cache'}", "train.steps=4", "data.workers=0", run=name
        )

    made = losses(recipe("rolling"))
    assert "latents: cached 0 / computed 12" in capsys.readouterr().out

    def refuse(*args: object) -> None:
        raise AssertionError("an encoder was built")

    monkeypatch.setattr("vidgen.train.encoders.build_autoencoder", refuse)
    monkeypatch.setattr("vidgen.train.encoders.build_text", refuse)
    assert losses(recipe("cached")) == made
    assert "latents: cached 12 / computed 0" in capsys.readouterr().out


def test_a_cache_of_another_encoder_is_refused(tiny: MakeRecipe, tmp_path: Path) -> None:
    where = f"data.latents={tmp_path / 'cache'}"
    Trainer(tiny(where)).loader.close()
    with pytest.raises(UserError, match=r"encoders\.text\.length=8, this run has 9"):
        Trainer(tiny(where, "text.length=9"))
    with pytest.raises(UserError, match="suffix=False, this run has True"):
        Trainer(tiny(where, "conditions.suffix=true"))


def test_given_frames_are_refused(tiny: MakeRecipe, tmp_path: Path) -> None:
    recipe = tiny(
        f"data.latents={tmp_path / 'cache'}",
        "model.cond_embed=true",
        "conditions.weights={t2v: 1, i2v_head: 1}",
    )
    with pytest.raises(UserError, match=r"no given frames, .* \(i2v_head\); set their weights"):
        Trainer(recipe)
