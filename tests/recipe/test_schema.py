"""A recipe: what it refuses, and that writing it down loses nothing."""

from collections.abc import Callable

import pytest

from vidgen.config import to_dict
from vidgen.errors import UserError
from vidgen.recipe.reader import dump_yaml, read_recipe
from vidgen.recipe.schema import OptimConfig, Recipe

MakeRecipe = Callable[..., Recipe]


def test_a_recipe_survives_being_written(tiny: MakeRecipe, tmp_path: object) -> None:
    recipe = tiny(
        "optim.drops={40_000: 3e-5, 2: 1e-4}",
        "optim.eps=1e-15",
        'conditions.weights={i2v_head: 2, "frames@0,0.5,-1": 1, clip@0:33: 1}',
        "train.ema_decay=null",
        "checkpoint.keep_every=10",
        "flow.shift=2.5",
    )
    assert recipe.optim.drops == {40_000: 3e-5, 2: 1e-4}
    assert read_recipe(to_dict(recipe), [], Recipe) == recipe
    path = f"{tmp_path}/written.yaml"
    with open(path, "w") as file:
        file.write(dump_yaml(recipe))
    assert read_recipe(path, [], Recipe) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "optim.lrr.*did you mean 'optim.lr'"),
        ("train.step=5", "train.step.*did you mean 'train.steps'"),
        ("lr=1", "lr.*optim.lr"),
        ("optim.lr=fast", "optim.lr is 'fast': must be a number"),
        ("optim.lr=0", "optim.lr is 0: must be greater than 0"),
        ("optim.lr=.inf", "optim.lr is .*number"),
        ("optim.betas=[0.9, 1.0]", "optim.betas.* must be .*less than 1"),
        ("optim.drops={0: 1e-4}", "optim.drops"),
        ("train.steps=0", "train.steps is 0: must be greater than 0"),
        ("train.steps=2.5", "train.steps is 2.5"),
        ("train.dtype=float16", "train.dtype is 'float16': must be .*'bfloat16'"),
        ("train.ema_decay=1.0", "train.ema_decay"),
        ("train.accumulate=0", "train.accumulate"),
        ("checkpoint.every=0", "checkpoint.every"),
        ("parallel.zero=1", "parallel.zero is 1: must be 2 or 3"),
        ("recompute.dual=-1", "recompute.dual"),
        ("seed=-1", "seed"),
        ("conditions.weights={t2v: 0}", "conditions.*all zero"),
        (
            "conditions.weights={i2v: 1}",
            "conditions.weights.i2v: 'i2v' is no condition",
        ),
        ("model.hidden_size=33", "hidden_size 33"),
    ],
)
def test_refused_in_one_line(tiny: MakeRecipe, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        tiny(override)
    assert "\n" not in str(refusal.value)


def test_the_defaults_are_the_reports_adamw() -> None:
    optim = OptimConfig()
    assert (optim.betas, optim.eps, optim.weight_decay, optim.clip) == ((0.9, 0.999), 1e-15, 0, 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.reinitialise=[imgin]", "train.init_from=x"], "nearest is 'img_in'"),
        (["train.reinitialise=[img_in]"], "without init_from all are new"),
    ],
)
def test_layers_to_begin_anew_are_checked_with_the_recipe(
    tiny: MakeRecipe, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tiny(*overrides)
