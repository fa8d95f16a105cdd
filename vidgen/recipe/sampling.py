"""How a video is sampled."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from vidgen.config import config


@config
class SampleConfig:
    steps: PositiveInt = 50
    guidance: Annotated[float, Field(ge=0)] = 7.5  # text
    guidance_img: Annotated[float, Field(ge=0)] = 3.0  # image or video condition
    oscillate_text: bool = True  # after `oscillate_after` steps, every other step uses scale 1
    oscillate_img: bool = True
    oscillate_after: NonNegativeInt = 10
    dynamic_img: bool = True  # the image scale rises over frames and falls over steps
    solver: Literal["euler", "heun", "rf_taylor"] = "euler"  # the others evaluate twice a step
    fps: PositiveFloat = 24.0
    motion_score: float | None = 4.0  # appended to the caption; null appends none
