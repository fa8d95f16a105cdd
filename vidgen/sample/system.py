"""The part of a recipe that sampling needs."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

from vidgen.config import Presets, config
from vidgen.data.config import DataConfig
from vidgen.diffusion.config import ConditionConfig, FlowConfig
from vidgen.models.build import AutoencoderConfig
from vidgen.models.mmdit.config import PRESETS, MMDiTConfig
from vidgen.models.text.config import TextConfig
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.sampling import SampleConfig


@config
class System:
    """What was trained: the same keys as in the recipe, without how it was trained."""

    name: str
    model: Annotated[MMDiTConfig, Presets(PRESETS)]
    autoencoder: AutoencoderConfig
    text: TextConfig
    data: DataConfig  # its buckets say which sizes the model has seen
    flow: FlowConfig = FlowConfig()
    conditions: ConditionConfig = ConditionConfig()
    sample: SampleConfig = SampleConfig()

    @staticmethod
    def of(recipe: Mapping[str, Any]) -> "System":
        """From a whole recipe as plain mappings, checked when it was trained with."""
        names = {field.name for field in fields(System)}
        return read_recipe({k: v for k, v in recipe.items() if k in names}, [], System)
