"""The recipe for training the Video DC-AE, and how it is distinguished from a generator's."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from vidgen.config import Presets, config
from vidgen.data.config import DataConfig
from vidgen.models.video_dcae.config import VideoDCAEConfig
from vidgen.recipe.reader import Source, peek, read_recipe
from vidgen.recipe.schema import (
    AlignmentConfig,
    CheckpointConfig,
    LogConfig,
    OptimConfig,
    Recipe,
    RecoveryConfig,
    TrainConfig,
)

PRESETS = {
    "published": VideoDCAEConfig(),
    "published_256": VideoDCAEConfig(latent_channels=256),
    "tiny": VideoDCAEConfig(
        latent_channels=64,
        widths=(16, 32, 32, 64, 64, 64),
        encoder_depths=(1,) * 6,
        decoder_depths=(1,) * 6,
        head_dim=16,
    ),
}


@config
class ReconstructionConfig:
    """Weights of the loss terms; a term with weight 0 is not computed."""

    lpips: NonNegativeFloat = 0.5
    lpips_weights: str | None = None
    """torchvision's VGG-16 file; needed while lpips is above 0."""
    adversarial: NonNegativeFloat = 0.05
    """Weight of the adversarial loss."""
    adaptive: bool = False
    """Multiplies it by a weight that gives it and the other losses gradients of one size at the
    decoder's last layer, as the public code does; the report states the plain weight."""
    adversarial_from: NonNegativeInt = 250_000
    """The step from which the discriminator is used."""
    discriminator_lr: PositiveFloat = 1e-4
    discriminator_width: PositiveInt = 64
    image_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of steps that train on one frame of each clip, as images."""


@config
class CopiesConfig:
    """Every rank holds the whole model."""

    timeout_s: PositiveFloat = 600  # without progress of a rank, after which all ranks end


@config
class ReconstructConfig:
    """Validation on the same clips every time, including at the start."""

    every: PositiveInt | None = None  # steps; null: never
    manifest: str | None = None  # held-out clips
    batches: PositiveInt = 4  # number of the manifest's first clips, for every rank
    videos: NonNegativeInt = 4  # number of clips shown with their reconstructions


@config
class AutoencoderRecipe:
    kind: Literal["autoencoder"]
    name: str
    run_dir: str
    seed: NonNegativeInt = 42
    autoencoder: Annotated[VideoDCAEConfig, Presets(PRESETS)]
    data: DataConfig
    loss: ReconstructionConfig = ReconstructionConfig()
    alignment: AlignmentConfig = AlignmentConfig()  # `layer` is a stage of the encoder, 1 to 6
    optim: OptimConfig = OptimConfig()
    parallel: CopiesConfig = CopiesConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    log: LogConfig = LogConfig()
    validate: ReconstructConfig = ReconstructConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        if self.train.reinitialise:
            raise ValueError("train.reinitialise is for generators: an autoencoder loads all")
        if self.alignment.layer > len(self.autoencoder.widths):
            raise ValueError(
                f"alignment.layer is {self.alignment.layer}: the encoder has "
                f"{len(self.autoencoder.widths)} stages"
            )


def read_any(source: Source, overrides: Sequence[str] = ()) -> Recipe | AutoencoderRecipe:
    """A recipe of either kind: an autoencoder's says `kind: autoencoder`."""
    kind = source.get("kind") if isinstance(source, Mapping) else peek(source, "kind")
    if kind == "autoencoder":
        return read_recipe(source, overrides, AutoencoderRecipe)
    return read_recipe(source, overrides)
