"""A request checked against the model that is to make it, with the sizes and passes that follow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vidgen import limits
from vidgen.diffusion.condition_names import gives_images
from vidgen.diffusion.conditions import frames_needed
from vidgen.diffusion.guidance import Branches, plan
from vidgen.diffusion.solvers import SOLVERS, passes_per_step
from vidgen.errors import UserError
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.geometry import Geometry
from vidgen.recipe import Recipe
from vidgen.sample.references import Reference, check_references
from vidgen.sample.request import Request

Size = tuple[int, int, int]  # frames, rows, columns


@dataclass(frozen=True)
class Job:
    """What sampling works on: only `check` makes one, so nothing after it checks again."""

    request: Request
    latent: Size
    tokens: Size
    references: Sequence[Reference]  # what shows each piece the condition gives
    branches: Sequence[Branches]  # guidance branches of each step
    full_branches: Sequence[Branches]  # all of them at every step: what `branches` saves from

    @property
    def passes(self) -> list[int]:
        """Of the model, in each step."""
        return passes_per_step(self.branches, self.request.solver)

    @property
    def full_passes(self) -> list[int]:
        return passes_per_step(self.full_branches, self.request.solver)


def check(recipe: Recipe, ae: Autoencoder, request: Request) -> Job:
    """Refuses in one line what this model cannot make."""
    _check_numbers(request)
    geometry = Geometry.of(ae, recipe.model.patch_size)
    size = request.frames, request.height, request.width
    try:
        latent = geometry.latent_grid(*size)
    except ValueError as error:
        raise UserError(str(error)) from None
    if not 0 < request.fps < math.inf:
        raise UserError(f"fps {request.fps:g}: expected a number above 0")
    if request.solver not in SOLVERS:
        raise UserError(f"solver {request.solver!r}: expected one of {', '.join(SOLVERS)}")
    if request.condition != "t2v":
        if not recipe.model.cond_embed:
            raise UserError(
                f"this model takes no image or video (model.cond_embed is false), so it "
                f"cannot sample {request.condition}; leave --condition out"
            )
        needed = frames_needed(request.condition, ae)
        if request.frames < needed:
            raise UserError(
                f"{request.condition} needs at least {needed} frames, not {request.frames}"
            )
    references = check_references(request.condition, request.ref, ae, request.frames)
    tokens = geometry.token_grid(*size)
    branches = guidance_branches(recipe, request, tokens)
    full = guidance_branches(recipe, request, tokens, full=True)
    return Job(request, latent, tokens, references, branches, full)


def _check_numbers(request: Request) -> None:
    """Before anything is built from them."""
    for name, most in (
        ("steps", limits.SAMPLE_STEPS),
        ("frames", limits.SAMPLE_FRAMES),
        ("height", limits.SAMPLE_SIDE),
        ("width", limits.SAMPLE_SIDE),
    ):
        value = getattr(request, name)
        if value < 1:
            raise UserError(f"{name} {value}: expected 1 or more")
        if value > most:
            raise UserError(f"{name} {value}: expected {most} or less")
    for name in ("guidance", "guidance_img", "motion_score"):
        value = getattr(request, name)
        if value is not None and not abs(value) <= limits.GUIDANCE:  # NaN too
            raise UserError(f"{name} {value:g}: expected a finite number")


def guidance_branches(
    recipe: Recipe, request: Request, tokens: Size, *, full: bool = False
) -> list[Branches]:
    """Which guidance branches each step runs; `full` runs all of them at every step."""
    if recipe.model.guidance_embed:  # a distilled model reads the scale as an input
        return [Branches({"text": 1.0})] * request.steps
    config = recipe.sample.guidance_config(
        request.guidance,
        request.guidance_img,
        # As published: for a given image, not for a given clip
        dynamic=gives_images(request.condition),
    )
    has_image = request.condition != "t2v"
    return plan(config, request.steps, tokens, has_image=has_image, full=full)
