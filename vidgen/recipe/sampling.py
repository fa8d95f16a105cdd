"""How a video is sampled."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from vidgen.config import Presets, config
from vidgen.diffusion.guidance import GuidanceConfig
from vidgen.recipe.image_model import IMAGE_MODELS, ImageModelConfig


@config
class SampleConfig:
    steps: PositiveInt = 50
    guidance: Annotated[float, Field(ge=0)] = 7.5  # text
    guidance_img: Annotated[float, Field(ge=0)] = 3.0  # image or video condition
    oscillate_text: bool = False  # after `oscillate_after`, every other step uses scale 1
    oscillate_img: bool = True
    oscillate_after: NonNegativeInt | Annotated[float, Field(gt=0, lt=1)] = 0.2
    """A number of steps, or the fraction of all steps: 0.2 is 10 steps of 50 and 4 of 20."""
    dynamic_img: Literal["none", "frames", "steps", "both"] = "both"
    """Where the image scale varies: it rises from 1 over frames and falls to 1 over steps."""
    dynamic_curve: Literal["linear", "quadratic"] = "linear"
    dynamic_rule: Literal["report", "public"] = "report"
    """How the scale falls over N steps: to 1 at the last step as in the report's Figure 10, or by
    1/N of the way each step as in Open-Sora's public code, which stops short of 1."""
    image_model: Annotated[ImageModelConfig | None, Presets(IMAGE_MODELS)] = None
    """Draws the first frame of videos from text alone, such as t2i2v, the report's pipeline with
    FLUX.1-dev, or t2i2v_schnell; null: videos start from noise."""
    keep_given: Literal["all", "images"] = "all"
    """Whether given frames are put back after the last step: always, or as in Open-Sora's public
    code only where all of them are single frames, so that a given clip comes out as denoised."""
    solver: Literal["euler", "heun", "rf_taylor"] = "euler"  # the others evaluate twice a step
    fps: PositiveFloat = 24.0
    motion_score: float | None = 4.0  # appended to the caption; null appends none

    def guidance_config(
        self,
        text: float | None = None,
        image: float | None = None,
        *,
        dynamic: bool = True,
    ) -> GuidanceConfig:
        """With the scales of a request in place of these, where it names any."""
        return GuidanceConfig(
            text=self.guidance if text is None else text,
            image=self.guidance_img if image is None else image,
            oscillate_text=self.oscillate_text,
            oscillate_image=self.oscillate_img,
            oscillate_after=self.oscillate_after,
            dynamic_image=self.dynamic_img if dynamic else "none",
            dynamic_curve=self.dynamic_curve,
            dynamic_rule=self.dynamic_rule,
        )

    @field_validator("dynamic_img", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        # As recipes before version 0.2 say it.
        return {True: "both", False: "none"}[value] if isinstance(value, bool) else value
