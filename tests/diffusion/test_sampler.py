"""Euler integration: exact where it can be, and equal to the published sampler's tokens."""

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
from vidgen.diffusion.sampler import euler
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
        dynamic_image=oscillate,
    )
    shown = patchify(condition_channels(given["mask"], given["reference"]), 2)
    cond = {"text": shown, "image": shown, "none": torch.zeros_like(shown)}
    called = []

    def evaluate(branch: str, x: Tensor, t: float) -> Tensor:
        row = BRANCHES.index(branch)
        called.append(branch)
        velocity: Tensor = model(
            x,
            grid=grid,
            txt=given["txt"][row : row + 1],
            vec=given["y_vec"][row : row + 1],
            t=torch.tensor([t]),
            cond=cond[branch],
        )
        return velocity

    with torch.no_grad():
        branches = plan(config, steps, grid, has_image=True, full=full)
        found = euler(evaluate, patchify(given["noise"], 2), times, branches)
    expected = given["latent_tokens_osc" if oscillate else "latent_tokens_plain"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert len(called) == (3 * 12 + 2 if oscillate and not full else 3 * 14)


def test_a_constant_velocity_arrives_whatever_the_steps() -> None:
    noise, data = torch.randn(1, 5, 2), torch.randn(1, 5, 2)
    one = Branches({"text": 1.0})
    for steps, alpha in ((1, 1.0), (7, 3.0)):
        times = flow.timesteps(steps, alpha)
        found = euler(lambda name, x, t: noise - data, noise, times, [one] * steps)
        torch.testing.assert_close(found, data)


def test_each_step_is_evaluated_at_its_own_time_and_told() -> None:
    told, asked = [], []

    def evaluate(branch: str, x: Tensor, t: float) -> Tensor:
        asked.append((branch, t))
        return torch.zeros_like(x)

    both = Branches({"text": 2.0, "none": torch.tensor([-1.0, -1.0], dtype=torch.float64)})
    branches = [both, Branches({"text": 1.0})]
    noise = torch.randn(1, 2, 3, dtype=torch.bfloat16)
    found = euler(evaluate, noise, [1.0, 0.6, 0.0], branches, lambda *done: told.append(done))
    assert asked == [("text", 1.0), ("none", 1.0), ("text", 0.6)]
    assert told == [(1, 2), (2, 2)]
    assert found.dtype == torch.float32  # half-precision steps would not add up
    assert torch.equal(found, noise.float())


def test_first_order_convergence() -> None:
    """dx/dt = x has x(0) = x(1) / e; twice the steps, half the error."""
    start = torch.ones(1, 1, 1, dtype=torch.float32)
    errors = []
    for steps in (20, 40):
        times = flow.timesteps(steps, 1.0)
        end = euler(lambda name, x, t: x, start, times, [Branches({"text": 1.0})] * steps)
        errors.append(abs(float(end) - 0.36787944))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
