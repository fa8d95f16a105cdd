"""The branch plan: what it leaves out changes nothing."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from vidgen.diffusion.guidance import BRANCHES, Branches, GuidanceConfig, plan
from vidgen.diffusion.solvers import passes_per_step
from vidgen.recipe.sampling import SampleConfig

GRID = (3, 2, 2)


def config(**changes: Any) -> GuidanceConfig:
    said = SampleConfig()
    fields: dict[str, Any] = {
        "text": said.guidance,
        "image": said.guidance_img,
        "oscillate_text": said.oscillate_text,
        "oscillate_image": said.oscillate_img,
        "oscillate_after": said.oscillate_after,
        "dynamic_image": said.dynamic_img,
    }
    return GuidanceConfig(**{**fields, **changes})


def velocities(has_image: bool) -> dict[str, Tensor]:
    """Without an image the last two branches have the same inputs, so the same velocity."""
    found = {name: torch.randn(2, 12, 4, dtype=torch.float64) for name in BRANCHES}
    if not has_image:
        found["none"] = found["image"]
    return found


def test_the_defaults_take_80_and_110_evaluations_of_150() -> None:
    for has_image, planned in ((False, 80), (True, 110)):
        assert sum(passes_per_step(plan(config(), 50, GRID, has_image=has_image))) == planned
        assert sum(passes_per_step(plan(config(), 50, GRID, has_image=has_image, full=True))) == 150


SCALES = [(7.5, 3.0), (1.0, 3.0), (7.5, 1.0), (1.0, 1.0), (0.0, 0.0), (3.0, 3.0), (7.5, 0.5)]


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("has_image", [False, True])
def test_planned_equals_full(has_image: bool, scales: tuple[float, float]) -> None:
    for text, image, dynamic in product([False, True], repeat=3):
        asked = config(
            text=scales[0],
            image=scales[1],
            oscillate_text=text,
            oscillate_image=image,
            dynamic_image=dynamic,
            oscillate_after=3,
        )
        planned, full = (
            plan(asked, 8, GRID, has_image=has_image, full=whole) for whole in (False, True)
        )
        for few, all_three in zip(planned, full, strict=True):
            assert set(few.weights) <= set(all_three.weights) == set(BRANCHES)
            given = velocities(has_image)
            needed = {name: given[name] for name in few.weights}
            torch.testing.assert_close(few.combine(needed), all_three.combine(given))


def test_combined_as_published() -> None:
    """v_none + g_img (v_img - v_none) + g_txt (v_text - v_img), scales by step and latent frame."""
    asked, steps = config(), 14
    for i, step in enumerate(plan(asked, steps, GRID, has_image=True)):
        v = velocities(has_image=True)
        rest = i >= 10 and i % 2 == 1
        g_txt, g_img = (1.0, 1.0) if rest else (7.5, 3.0)
        scale = torch.full((3,), g_img, dtype=torch.float64)
        if g_img > 1:
            upper = torch.linspace(g_img, 1, steps + 1, dtype=torch.float64)[i]
            scale = torch.linspace(1, float(upper), 3, dtype=torch.float64)
        g = scale.repeat_interleave(4)[:, None]
        expected = v["none"] + g * (v["image"] - v["none"]) + g_txt * (v["text"] - v["image"])
        torch.testing.assert_close(step.combine(v), expected)


def test_which_branches_run() -> None:
    def names(**asked: Any) -> list[list[str]]:
        has_image = asked.pop("has_image", True)
        steps = plan(config(oscillate_after=2, **asked), 4, GRID, has_image=has_image)
        return [list(step.weights) for step in steps]

    assert names() == [[*BRANCHES]] * 3 + [["text"]]
    assert names(has_image=False) == [["text", "none"]] * 3 + [["text"]]
    assert names(oscillate_text=False)[3] == ["text", "image"]
    assert names(oscillate_image=False)[3] == ["text", "image", "none"]
    assert names(text=1.0, image=1.0) == [["text"]] * 4
    assert names(text=3.0, image=3.0, dynamic_image=False)[0] == ["text", "none"]
    assert names(text=0.0, image=0.0, oscillate_text=False, oscillate_image=False)[0] == ["none"]
    assert names(text=1.0, has_image=False) == [["text"]] * 4


def test_weights_add_up_to_one() -> None:
    for has_image in (False, True):
        for step in plan(config(), 50, GRID, has_image=has_image):
            total = sum(
                w if isinstance(w, Tensor) else torch.tensor(w) for w in step.weights.values()
            )
            assert isinstance(total, Tensor)
            torch.testing.assert_close(total.double(), torch.ones_like(total).double())


def test_one_number_or_one_for_each_token() -> None:
    v = {"text": torch.ones(2, 3, 4), "none": torch.ones(2, 3, 4)}
    found = Branches({"text": 2.0, "none": torch.tensor([0.0, 1.0, -1.0])}).combine(v)
    assert found[0, :, 0].tolist() == [2.0, 3.0, 1.0]
