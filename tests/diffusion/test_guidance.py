"""The branch plan: what it leaves out changes nothing."""

from dataclasses import replace
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
    return replace(SampleConfig().guidance_config(), **changes)


PUBLIC: dict[str, Any] = {"oscillate_text": True, "dynamic_rule": "public"}


def velocities(has_image: bool) -> dict[str, Tensor]:
    """Without an image the last two branches have the same inputs, so the same velocity."""
    found = {name: torch.randn(2, 12, 4, dtype=torch.float64) for name in BRANCHES}
    if not has_image:
        found["none"] = found["image"]
    return found


@pytest.mark.parametrize(
    ("rule", "without_image", "with_image"), [({}, 100, 130), (PUBLIC, 80, 110)]
)
def test_evaluations_of_150(rule: dict[str, Any], without_image: int, with_image: int) -> None:
    for has_image, planned in ((False, without_image), (True, with_image)):
        for full, expected in ((False, planned), (True, 150)):
            branches = plan(config(**rule), 50, GRID, has_image=has_image, full=full)
            assert sum(passes_per_step(branches)) == expected


def image_scales(steps: int, frames: int = 5, **changes: Any) -> Tensor:
    """The image scale g of every step and frame: the weight of "none" is 1 - g."""
    asked = config(oscillate_image=False, **changes)
    planned = plan(asked, steps, (frames, 1, 1), has_image=True, full=True)
    return torch.stack(
        [1 - torch.as_tensor(step.weights["none"]).expand(frames) for step in planned]
    )


def test_the_image_scale_falls_as_in_figure_10() -> None:
    """(k (N - n) + n - 1) / (N - 1) at step n of N, k = 3, N = 5."""
    assert image_scales(5)[:, -1].tolist() == [3.0, 2.5, 2.0, 1.5, 1.0]
    for steps in (2, 7, 50):
        expected = [(3.0 * (steps - n) + n - 1) / (steps - 1) for n in range(1, steps + 1)]
        assert image_scales(steps)[:, -1].tolist() == pytest.approx(expected, rel=1e-12)
    assert image_scales(1)[:, -1].tolist() == [3.0]


def test_the_public_code_divides_by_the_number_of_steps() -> None:
    found = image_scales(5, dynamic_rule="public")[:, -1].tolist()
    assert found == pytest.approx([3.0, 2.6, 2.2, 1.8, 1.4])


def test_the_image_scale_over_frames_steps_or_both() -> None:
    assert image_scales(5, dynamic_image="none").unique().tolist() == [3.0]
    frames = image_scales(5, dynamic_image="frames")
    assert (frames == torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0])).all()
    steps = image_scales(5, dynamic_image="steps")
    assert (steps == torch.tensor([3.0, 2.5, 2.0, 1.5, 1.0])[:, None]).all()
    both = image_scales(5)
    torch.testing.assert_close(both, 1 + (steps.double() - 1) * (frames.double() - 1) / 2)


def test_the_image_scale_along_a_parabola() -> None:
    curve = [3.0, 2.125, 1.5, 1.125, 1.0]
    over = {
        name: image_scales(5, dynamic_image=name, dynamic_curve="quadratic")
        for name in ("steps", "frames")
    }
    assert over["steps"][:, 0].tolist() == curve
    assert over["frames"][0].tolist() == curve[::-1]


@pytest.mark.parametrize(("after", "steps", "first"), [(0.2, 50, 11), (0.2, 20, 5), (6, 20, 7)])
def test_oscillation_begins_after_a_number_or_a_fraction_of_steps(
    after: float, steps: int, first: int
) -> None:
    asked = config(oscillate_after=after, oscillate_text=True)
    planned = plan(asked, steps, GRID, has_image=True)
    resting = [i for i, step in enumerate(planned) if list(step.weights) == ["text"]]
    assert resting == list(range(first, steps, 2))


SCALES = [(7.5, 3.0), (1.0, 3.0), (7.5, 1.0), (1.0, 1.0), (0.0, 0.0), (3.0, 3.0), (7.5, 0.5)]


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("has_image", [False, True])
def test_planned_equals_full(has_image: bool, scales: tuple[float, float]) -> None:
    for text, image, dynamic in product([False, True], [False, True], ["none", "both"]):
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
    asked, steps = config(**PUBLIC, oscillate_after=10), 14
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
        changed = config(**{**PUBLIC, "oscillate_after": 2, **asked})
        steps = plan(changed, 4, GRID, has_image=has_image)
        return [list(step.weights) for step in steps]

    assert names() == [[*BRANCHES]] * 3 + [["text"]]
    assert names(has_image=False) == [["text", "none"]] * 3 + [["text"]]
    assert names(oscillate_text=False)[3] == ["text", "image"]
    assert names(oscillate_image=False)[3] == ["text", "image", "none"]
    assert names(text=1.0, image=1.0) == [["text"]] * 4
    assert names(text=3.0, image=3.0, dynamic_image="none")[0] == ["text", "none"]
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
