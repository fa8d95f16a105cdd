"""Guidance as a sum of branches, and which branches a step really needs.

The three branches are the model's velocity with (text, image), (negative, image) and
(negative, no image). The guided velocity

    v = v_none + g_img (v_img - v_none) + g_txt (v_text - v_img)

is linear in them, so a step whose coefficients vanish, or whose branches have equal inputs, runs
fewer of them and gives the same result to rounding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

BRANCHES = ("text", "image", "none")


@dataclass(frozen=True)
class GuidanceConfig:
    text: float
    image: float
    oscillate_text: bool
    oscillate_image: bool
    oscillate_after: int | float  # steps, or the fraction of all steps
    dynamic_image: Literal["none", "frames", "steps", "both"]
    dynamic_curve: Literal["linear", "quadratic"] = "linear"
    dynamic_rule: Literal["report", "public"] = "report"


@dataclass(frozen=True)
class Branches:
    """The branches of one step: name and weight, a number or one per token (V,)."""

    weights: dict[str, float | Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.weights)

    def on(self, x: Tensor) -> "Branches":
        """The same, weights of tokens being of the kind of `x`."""
        return Branches(
            {name: w.to(x) if isinstance(w, Tensor) else w for name, w in self.weights.items()}
        )

    def combine(self, velocity: Mapping[str, Tensor]) -> Tensor:
        """The guided velocity."""
        terms = []
        for name, weight in self.weights.items():
            scale = weight[None, :, None] if isinstance(weight, Tensor) else weight
            terms.append(scale * velocity[name])
        return sum(terms[1:], terms[0])


def plan(
    config: GuidanceConfig,
    steps: int,
    grid: tuple[int, int, int],
    *,
    has_image: bool,
    full: bool = False,
) -> list[Branches]:
    """Branches of every step over a (frames, rows, columns) token grid.

    `full` keeps all three branches at every step: what the planned run is checked against.
    """
    return [_step(config, i, steps, grid, has_image, full) for i in range(steps)]


def _step(
    config: GuidanceConfig,
    i: int,
    steps: int,
    grid: tuple[int, int, int],
    has_image: bool,
    full: bool,
) -> Branches:
    after = config.oscillate_after
    rest = i >= (round(after * steps) if isinstance(after, float) else after) and i % 2 == 1
    g_txt = 1.0 if rest and config.oscillate_text else config.text
    g_img = 1.0 if rest and config.oscillate_image else config.image
    image: float | Tensor = g_img
    if config.dynamic_image != "none" and has_image and g_img > 1:
        image = _dynamic_scale(config, g_img, i, steps, grid)
    weights: dict[str, float | Tensor] = {
        "text": g_txt,
        "image": image - g_txt,
        "none": 1.0 - image,
    }
    if full:
        return Branches(weights)
    if not has_image:  # without an image the last two branches have the same inputs
        weights = {"text": g_txt, "none": 1.0 - g_txt}
    return Branches({name: w for name, w in weights.items() if not _zero(w)})


def _dynamic_scale(
    config: GuidanceConfig, scale: float, i: int, steps: int, grid: tuple[int, int, int]
) -> float | Tensor:
    """The image scale of step `i`, per token where it rises over latent frames."""
    power = 1 if config.dynamic_curve == "linear" else 2
    upper = scale
    if config.dynamic_image in ("steps", "both"):
        done = i / (steps if config.dynamic_rule == "public" else max(steps - 1, 1))
        upper = 1.0 + (scale - 1.0) * (1.0 - done) ** power
    if config.dynamic_image == "steps":
        return upper
    rise = torch.linspace(0.0, 1.0, grid[0], dtype=torch.float64) ** power
    return (1.0 + (upper - 1.0) * rise).repeat_interleave(grid[1] * grid[2])


def _zero(weight: float | Tensor) -> bool:
    return not weight.any() if isinstance(weight, Tensor) else weight == 0.0
