"""The flow-matching objective and the mix of conditions trained on."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from vidgen.config import config
from vidgen.diffusion.condition_names import check_condition

ConditionName = Annotated[str, AfterValidator(check_condition)]


@config
class FlowConfig:
    """How timesteps are shifted towards noise: t -> alpha t / (1 + (alpha - 1) t)."""

    sigma_min: Annotated[float, Field(ge=0, lt=1)] = 1e-5
    shift: Literal["public", "proportional", "flux"] | PositiveFloat = "public"
    """How alpha follows from the latent's shape. "public": the rule of Open-Sora's public code,
    linear in tokens per frame times sqrt(latent frames). "proportional": the report's, proportional
    to latent frames x rows x columns. "flux": FLUX.1-dev's, for images: exp(mu), mu linear in
    tokens per frame from 0.5 at 256 to 1.15 at 4096. A number: that alpha for every shape."""
    shift_low: tuple[PositiveFloat, PositiveFloat] = (256, 1.0)  # public: (tokens a frame, alpha)
    shift_high: tuple[PositiveFloat, PositiveFloat] = (4096, 3.0)
    shift_reference: tuple[PositiveInt, PositiveInt, PositiveInt] = (33, 24, 42)
    """Proportional: the latent (frames, rows, columns) with alpha `shift_at_reference`. Ours, since
    the report gives none: stage 1's longest clips, 129 frames at 256px 16:9."""
    shift_at_reference: PositiveFloat = 5.73
    """Ours: the public rule's alpha at the default reference, where both rules then agree."""

    round_t: Literal["none", "bf16"] = "none"
    """"bf16": timesteps are rounded to bf16, and rounded again when the model multiplies them by
    1000. The published Open-Sora 2.0 weights were trained and sampled so. "none": exact."""

    @field_validator("shift", mode="before")
    @classmethod
    def _null_is_public(cls, value: Any) -> Any:
        return "public" if value is None else value  # as recipes before version 0.2 say it

    def __post_init__(self) -> None:
        if not (self.shift_low[0] < self.shift_high[0] and self.shift_low[1] <= self.shift_high[1]):
            raise ValueError(
                f"shift_low {self.shift_low} must lie below shift_high {self.shift_high}: "
                f"(tokens a frame, alpha) each"
            )


def _text_only() -> dict[ConditionName, float]:
    return {"t2v": 1.0}


@config
class ConditionConfig:
    """Weights of the conditions a training clip is given, and how often text is dropped."""

    weights: dict[ConditionName, NonNegativeFloat] = Field(default_factory=_text_only)
    drop_image: Annotated[float, Field(ge=0, le=1)] | None = None
    """The report's image-condition dropout: the fraction of clips that are given no frames, of
    those long enough to be given any. null: t2v's weight decides, as in the public code, where
    the fraction grows as conditions stop fitting short clips."""
    suffix: bool = True  # frame rate and motion score at the end of every caption
    drop_tokens: Annotated[float, Field(ge=0, le=1)] = 0.31622777  # text tokens (T5)
    drop_pooled: Annotated[float, Field(ge=0, le=1)] = 0.31622777  # pooled text (CLIP)
    given_weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Of the tokens of given frames in the loss, beside 1 for those to be generated. 1 is the
    published objective; 0 leaves them out, and nothing is spent on frames that are known."""

    def __post_init__(self) -> None:
        if not sum(self.weights.values()) > 0:
            raise ValueError("condition weights are all zero: give at least one a weight above 0")
        if self.drop_image is not None and self.weights.get("t2v", 0) > 0:
            raise ValueError(
                f"drop_image is {self.drop_image:g} and weights gives t2v a weight: both say how "
                "many clips are given no frames; remove t2v from weights or set drop_image to null"
            )
