"""The text encoder of a model, and the sizes of its output."""

from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator
from pydantic_core import ArgsKwargs

from vidgen.config import config

# T5-v1.1-XXL tokens and the pooled vector of CLIP-L, as in the published video models.
T5_CLIP_SIZES = {"length": 512, "token_width": 4096, "pooled_width": 768}


@config
class TextConfig:
    """Omitted sizes depend on the kind: the defaults below, or T5-XXL's and CLIP-L's."""

    kind: Literal["builtin", "t5_clip"] = "builtin"
    length: PositiveInt = 16  # tokens a caption is padded or truncated to
    token_width: PositiveInt = 64  # the model's context_in_dim
    pooled_width: PositiveInt = 64  # the model's vec_in_dim
    context: NonNegativeInt = 0  # builtin: words before each one that its token carries too
    ordered: bool = False  # builtin: whether the pooled vector tells where each word stands
    t5_path: str | None = None  # t5_clip: a folder, or a hub name such as google/t5-v1_1-xxl
    clip_path: str | None = None  # t5_clip: the same, such as openai/clip-vit-large-patch14

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_kind(cls, given: Any) -> Any:
        fields = given.kwargs or {} if isinstance(given, ArgsKwargs) else given
        if not isinstance(fields, dict) or fields.get("kind") != "t5_clip":
            return given
        filled = {**T5_CLIP_SIZES, **fields}
        return ArgsKwargs((), filled) if isinstance(given, ArgsKwargs) else filled

    def __post_init__(self) -> None:
        if self.kind == "t5_clip" and not (self.t5_path and self.clip_path):
            raise ValueError(
                "kind t5_clip needs t5_path and clip_path: a folder each, or the hub names "
                "google/t5-v1_1-xxl and openai/clip-vit-large-patch14"
            )
