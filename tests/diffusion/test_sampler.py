"""Guided integration: equal to the published sampler's tokens, and counted as it was planned."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from vidgen.diffusion import flow
from vidgen.diffusion.conditions import condition_channels
from vidgen.diffusion.config import FlowConfig
from vidgen.diffusion.guidance import BRANCHES, Branches, GuidanceConfig, plan
from vidgen.diffusion.sampler import Point, evaluations, integrate
from vidgen.diffusion.solvers import SOLVERS
from vidgen.models.mmdit import MMDiT, MMDiTConfig, load_weights, patchify

GOLDEN = Path(__file__).parents[1] / "golden" / "sampler_i2v.safetensors"


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(GOLDEN, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, {
            key: json.loads(v) if v[0] in "0123456789[" else v for key, v in file.metadata().items()
        }


@pytest.mark.parametrize("full", [False, True], ids=["planned", "full"])
@pytest.mark.parametrize("oscillate", [False, True], ids=["plain", "osc"])
def test_the_published_trajectory(
    golden: tuple[dict[str, Tensor], dict[str, Any]], oscillate: bool, full: bool
) -> None:
    given, said = golden
    assert said["branch_order"] == "text+image, negative+image, negative+zero image"
    fields = {k: v for k, v in said.items() if k in MMDiTConfig.__dataclass_fields__}
    model = MMDiT(MMDiTConfig(**fields, cond_embed=True))
    prefix = "weight/"
    load_weights(
        model, {k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}
    )
    latent = tuple(given["noise"].shape[2:])
    grid = (latent[0], latent[1] // 2, latent[2] // 2)
    steps = said["num_steps"]

    times = flow.timesteps(steps, flow.shift_alpha(FlowConfig(), latent))  # type: ignore[arg-type]
    torch.testing.assert_close(
        torch.tensor(times, dtype=torch.float64), given["timesteps"], atol=1e-6, rtol=0
    )
    config = GuidanceConfig(
        text=said["guidance"],
        image=said["guidance_img"],
        oscillate_text=oscillate,
        oscillate_image=oscillate,
        oscillate_after=10,
        dynamic_image="both" if oscillate else "none",
        dynamic_rule="public",
    )
    shown = patchify(condition_channels(given["mask"], given["reference"]), 2)
    cond = {"text": shown, "image": shown, "none": torch.zeros_like(shown)}
    called = []

    def evaluate(point: Point, x: Tensor) -> dict[str, Tensor]:
        found = {}
        for branch in point.branches:
            row = BRANCHES.index(branch)
            called.append(branch)
            found[branch] = model(
                x,
                grid=grid,
                txt=given["txt"][row : row + 1],
                vec=given["y_vec"][row : row + 1],
                t=torch.tensor([point.t]),
                cond=cond[branch],
            )
        return found

    with torch.no_grad():
        branches = plan(config, steps, grid, has_image=True, full=full)
        found = integrate(evaluate, patchify(given["noise"], 2), times, branches)
    expected = given["latent_tokens_osc" if oscillate else "latent_tokens_plain"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert len(called) == (3 * 12 + 2 if oscillate and not full else 3 * 14)
    assert len(called) == evaluations(branches)


def test_a_constant_velocity_arrives_whatever_the_steps() -> None:
    noise, data = torch.randn(1, 5, 2), torch.randn(1, 5, 2)
    one = Branches({"text": 1.0})
    for steps, alpha in ((1, 1.0), (7, 3.0)):
        times = flow.timesteps(steps, alpha)
        found = integrate(lambda point, x: {"text": noise - data}, noise, times, [one] * steps)
        torch.testing.assert_close(found, data)


def test_each_step_is_evaluated_at_its_own_time_and_told() -> None:
    told, asked, seen = [], [], []

    def evaluate(point: Point, x: Tensor) -> dict[str, Tensor]:
        asked.append(point)
        return {name: torch.ones_like(x) for name in point.branches}

    both = Branches({"text": 2.0, "none": torch.tensor([-1.0, -1.0], dtype=torch.float64)})
    branches = [both, Branches({"text": 1.0})]
    noise = torch.randn(1, 2, 3, dtype=torch.bfloat16)
    found = integrate(
        evaluate,
        noise,
        [1.0, 0.6, 0.0],
        branches,
        progress=lambda *done: told.append(done),
        watch=lambda done, t, x, v: seen.append((done, t, x - t * v)),
    )
    assert asked == [Point(0, 0, 1.0, ("text", "none")), Point(1, 1, 0.6, ("text",))]
    assert told == [(1, 2), (2, 2)]
    assert found.dtype == torch.float32  # half-precision steps would not add up
    torch.testing.assert_close(found, noise.float() - 1)
    assert [(done, t) for done, t, _ in seen] == [(1, 0.6), (2, 0.0)]
    for _, _, clean in seen:  # what is watched tells where the run would end
        torch.testing.assert_close(clean, found)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_evaluates_as_often_as_was_planned(solver: str) -> None:
    """By the branches of the step it is in, whatever it asks for there."""
    asked: list[Point] = []

    def evaluate(point: Point, x: Tensor) -> dict[str, Tensor]:
        asked.append(point)
        return {name: x for name in point.branches}

    branches = [Branches({"text": 2.0, "none": -1.0}), *[Branches({"text": 1.0})] * 3]
    times = flow.timesteps(4, 3.0)
    integrate(evaluate, torch.randn(1, 2, 2), times, branches, solver=solver)
    assert sum(len(point.branches) for point in asked) == evaluations(branches, solver)
    assert [point.number for point in asked] == list(range(len(asked)))
    for point in asked:
        assert point.branches == tuple(branches[point.step].weights)
        assert times[point.step] >= point.t >= times[point.step + 1]
    assert asked[-1].t > 0  # where nothing was trained


def test_times_and_steps_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="3 times for 1 steps"):
        integrate(lambda point, x: {}, torch.zeros(1, 1, 1), [1, 0.5, 0], [Branches({})])
