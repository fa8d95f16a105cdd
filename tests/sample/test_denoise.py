"""Guided integration: equal to the published sampler's tokens, and counted as it was planned."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from vidgen.diffusion import flow
from vidgen.diffusion.conditions import condition_channels
from vidgen.diffusion.config import FlowConfig
from vidgen.diffusion.guidance import BRANCHES, Branches, GuidanceConfig, plan
from vidgen.diffusion.solvers import SOLVERS, evaluation_times, passes_per_step
from vidgen.models.mmdit import MMDiT, MMDiTConfig, load_weights, patchify
from vidgen.models.mmdit.model import compute_modulation
from vidgen.sample.denoise import Denoiser, Inputs, StepState
from vidgen.sample.hooks import ModelPass

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
    row = {name: slice(i, i + 1) for i, name in enumerate(BRANCHES)}
    branches = plan(config, steps, grid, has_image=True, full=full)
    inputs = Inputs(
        grid=grid,
        times=times,
        branches=branches,
        solver="euler",
        text={name: given["txt"][row[name]] for name in BRANCHES},
        pooled={name: given["y_vec"][row[name]] for name in BRANCHES},
        cond=cond,
        guidance=None,
    )
    called: list[int] = []
    model.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        found = run(model, inputs, patchify(given["noise"], 2))[-1].x_BVD
    expected = given["latent_tokens_osc" if oscillate else "latent_tokens_plain"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert len(called) == (3 * 12 + 2 if oscillate and not full else 3 * 14)
    assert len(called) == sum(passes_per_step(branches))


class Field(nn.Module):
    """In place of a model: any velocity, and a note of each pass."""

    def __init__(self, velocity: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.velocity = velocity
        self.times: list[float] = []

    def forward(self, x_BVD: Tensor, *, t: Tensor, **rest: Any) -> Tensor:
        self.times.append(float(t[0]))
        return self.velocity(x_BVD)


class ComputedModulation:
    """In place of the table, in which branches with the same text share rows: the published data
    has a text for each branch, and a `Field` has no modulation."""

    def __init__(self, *args: Any) -> None: ...

    def of(self, current: ModelPass) -> Any:
        return compute_modulation


@pytest.fixture(autouse=True)
def _computed_modulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidgen.sample.denoise.TabulatedModulation", ComputedModulation)


def run(model: Any, inputs: Inputs, noise: Tensor) -> list[StepState]:
    return list(Denoiser(model, torch.float32).steps(inputs, noise, 0, {}))


def field_inputs(
    times: Sequence[float], branches: Sequence[Branches], solver: str = "euler"
) -> Inputs:
    text = {name: torch.zeros(1, 1, 1) for name in BRANCHES}
    none = dict.fromkeys(BRANCHES)
    return Inputs((1, 1, 1), times, branches, solver, text, text, none, None)


def test_a_constant_velocity_arrives_whatever_the_steps() -> None:
    noise, data = torch.randn(1, 5, 2), torch.randn(1, 5, 2)
    one = Branches({"text": 1.0})
    for steps, alpha in ((1, 1.0), (7, 3.0)):
        inputs = field_inputs(flow.timesteps(steps, alpha), [one] * steps)
        *_, end = run(Field(lambda x: noise - data), inputs, noise)
        torch.testing.assert_close(end.x_BVD, data)


def test_each_step_is_evaluated_at_its_own_time_and_yielded() -> None:
    both = Branches({"text": 2.0, "none": torch.tensor([-1.0, -1.0], dtype=torch.float64)})
    inputs = field_inputs([1.0, 0.6, 0.0], [both, Branches({"text": 1.0})])
    noise = torch.randn(1, 2, 3, dtype=torch.bfloat16)
    model = Field(torch.ones_like)
    states = run(model, inputs, noise)
    assert model.times == pytest.approx([1.0, 1.0, 0.6])
    assert [(state.done, state.t) for state in states] == [(1, 0.6), (2, 0.0)]
    assert states[-1].x_BVD.dtype == torch.float32  # half-precision steps would not add up
    torch.testing.assert_close(states[-1].x_BVD, noise.float() - 1)
    for state in states:  # each tells where the run would end
        torch.testing.assert_close(state.clean_BVD, states[-1].x_BVD)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_evaluates_as_often_as_was_planned(solver: str) -> None:
    """By the branches of the step it is in, at times within that step."""
    branches = [Branches({"text": 2.0, "none": -1.0}), *[Branches({"text": 1.0})] * 3]
    times = flow.timesteps(4, 3.0)
    model = Field(lambda x: x)
    seen: list[ModelPass] = []

    def of(self: ComputedModulation, current: ModelPass) -> Any:
        seen.append(current)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ComputedModulation, "of", of)
        run(model, field_inputs(times, branches, solver), torch.randn(1, 2, 2))
    assert len(model.times) == sum(passes_per_step(branches, solver))
    asked = evaluation_times(times, solver)
    assert [(p.t, p.step) for p in seen if p.branch == "text"] == asked
    assert [p.evaluation for p in seen if p.branch == "text"] == list(range(len(asked)))
    for one in seen:
        assert one.branch in branches[one.step].names
        assert times[one.step] >= one.t >= times[one.step + 1]
    assert seen[-1].t > 0  # where nothing was trained


def test_times_and_steps_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="3 times for 1 steps"):
        field_inputs([1, 0.5, 0], [Branches({})])
