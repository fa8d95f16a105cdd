"""The flow-matching objective and the mix of conditions trained on."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from vidgen.config import config

ConditionName = Literal["t2v", "i2v_head", "i2v_tail", "i2v_loop", "v2v_head", "v2v_tail"]


@config
class FlowConfig:
    """alpha shifts timesteps towards noise: linear in tokens a frame, times sqrt(latent frames)."""

    sigma_min: Annotated[float, Field(ge=0, lt=1)] = 1e-5
    shift: PositiveFloat | None = None  # a fixed alpha instead of the rule below
    shift_low: tuple[PositiveFloat, PositiveFloat] = (256, 1.0)  # (tokens a frame, alpha)
    shift_high: tuple[PositiveFloat, PositiveFloat] = (4096, 3.0)

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
    suffix: bool = True  # frame rate and motion score at the end of every caption
    drop_tokens: Annotated[float, Field(ge=0, le=1)] = 0.31622777  # text tokens (T5)
    drop_pooled: Annotated[float, Field(ge=0, le=1)] = 0.31622777  # pooled text (CLIP)
    given_weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Of the tokens of given frames in the loss, beside 1 for those to be generated. 1 is the
    published objective; 0 leaves them out, and nothing is spent on frames that are known."""

    def __post_init__(self) -> None:
        if not sum(self.weights.values()) > 0:
            raise ValueError("condition weights are all zero: give at least one a weight above 0")
