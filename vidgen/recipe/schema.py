"""A recipe: everything that decides a training run, as one checked tree."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from vidgen import limits
from vidgen.config import Presets, config
from vidgen.data.config import DataConfig
from vidgen.diffusion.config import ConditionConfig, FlowConfig
from vidgen.errors import UserError
from vidgen.models.build import AutoencoderConfig
from vidgen.models.mmdit.config import PRESETS, MMDiTConfig
from vidgen.models.mmdit.detect import named_tensors
from vidgen.models.text.config import TextConfig
from vidgen.recipe.sampling import SampleConfig
from vidgen.runtime.memory.block_memory import BlockMemory, arrange

Fraction = Annotated[float, Field(ge=0, lt=1)]


@config
class OptimConfig:
    """AdamW; after a warm-up the rate is piecewise constant, or falls along half a cosine."""

    lr: PositiveFloat = 5e-5
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-15
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    states: Literal["fp32", "bf16", "8bit"] = "fp32"  # what the moments are kept in; the weights
    # stay fp32. A parameter's two take 8, 4 or 2 bytes; 8bit needs the extra "8bit"
    warmup: NonNegativeInt = 0  # steps of linear warm-up
    drops: dict[PositiveInt, PositiveFloat] = Field(default_factory=dict)  # from step: lr
    decay_to: PositiveFloat | None = None  # final lr of a cosine decay over the run; null: none
    clip: PositiveFloat = 1.0  # global gradient norm

    def __post_init__(self) -> None:
        if self.states == "8bit" and self.eps < 1e-8:
            raise ValueError(
                f"eps {self.eps:g} is too small for states 8bit, whose second moments may be "
                "rounded to 0: set it to 1e-8 or more"
            )


@config
class ParallelConfig:
    zero: Literal[2, 3] = 2  # 2 keeps whole parameters between forward and backward, 3 does not
    context: PositiveInt = 1  # ranks that share one sample's tokens
    ulysses: PositiveInt | None = None  # of those, neighbours that exchange heads; 1: all in a
    # ring; null: what measured bandwidth and FLOPs say
    text: Literal["sharded", "replicated"] = "sharded"  # over a context group
    tensor: PositiveInt = 1  # ranks that share every block's heads and hidden features
    copies: PositiveInt = 1  # of the sharded parameters: hybrid sharding
    timeout_s: PositiveFloat = 600  # without progress of a rank, after which all ranks end


@config
class RecomputeConfig:
    """How many blocks keep only their inputs and run again in the backward pass."""

    auto: bool = False
    """Chosen for each bucket from the GPU's figures, with what to offload: `recompute: auto`."""
    dual: NonNegativeInt = 0
    single: NonNegativeInt = 0


@config
class OffloadConfig:
    """What waits for the backward pass in pinned host memory instead of on the device."""

    inputs: bool = False  # those of the blocks that run again
    dual: NonNegativeInt = 0  # of the blocks after those, how many send what they keep
    single: NonNegativeInt = 0
    what: Literal["activations", "products"] = "activations"  # products: the rest runs again
    host_gb: PositiveFloat = 32.0  # a rank's share of pinned memory; what does not fit stays


@config
class AlignmentConfig:
    """An early layer learns to predict DINOv2's features of the frames: of a generator, for latents
    of a new kind, or of an autoencoder's encoder."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """Of minus the cosine similarity in the loss; 0: no alignment, and DINOv2 is not loaded."""
    path: str | None = None  # folder of DINOv2's weights, such as facebook/dinov2-large's
    layer: PositiveInt = 3  # whose video tokens; counted from 1, dual-stream blocks first
    hidden: PositiveInt = 2048  # of the MLP from the layer's width to the features'

    def __post_init__(self) -> None:
        if self.weight and self.path is None:
            raise ValueError(
                f"weight is {self.weight:g} and path is not set: name the folder of DINOv2's "
                "weights, or train without with alignment.weight=0"
            )


@config
class CheckpointConfig:
    every: PositiveInt = 1000  # steps
    keep_last: PositiveInt = 3
    keep_every: PositiveInt | None = None  # steps whose checkpoints are never removed
    max_unsaved: PositiveInt | None = None
    """Steps since the newest checkpoint after which failing saves end the run; null: 2 x every."""


@config
class RecoveryConfig:
    """What ends a run that torchrun then starts again from its newest checkpoint."""

    slow_factor: Annotated[float, Field(gt=1)] | None = 5.0
    """A step so many times its bucket's median is slow; null: none is."""
    slow_steps: PositiveInt = 5  # in a row that end the run
    spike_z: PositiveFloat | None = 3.0
    """A loss so many deviations above its timestep's mean is a spike; null: none is."""
    spike_steps: PositiveInt = 3  # in a row that end the run
    storage_timeout_s: PositiveFloat = 3600
    """How long a rank may wait for storage: clips, a checkpoint's write. All ranks end after it."""
    skip: bool = False  # after a spike or a non-finite loss, go on without the batches it came with


@config
class ValidateConfig:
    """The same clips, noise, timesteps, prompts and seeds every time, the start included."""

    every: PositiveInt | None = None  # steps; null: never
    manifest: str | None = None  # held-out clips; null: no loss of them
    batches: PositiveInt = 4  # of the manifest's first, for every rank
    timesteps: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    prompts: tuple[str, ...] = ()
    seed: NonNegativeInt = 0  # of the first prompt's video
    frames: PositiveInt | None = None  # null: those of the longest bucket
    sample_steps: PositiveInt | None = None  # null: those of the recipe's `sample`


@config
class LogConfig:
    """metrics.jsonl, TensorBoard and the console are always written."""

    wandb: str | None = None  # a project of Weights & Biases to log to as well


@config
class TrainConfig:
    steps: Annotated[PositiveInt, Field(le=limits.TRAIN_STEPS)] = 85_000
    accumulate: PositiveInt = 1  # micro-steps a step
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of matrix products; weights stay fp32
    device: Literal["auto", "cpu", "cuda"] = "auto"
    ema_decay: Fraction | None = None
    compile: bool = False  # torch.compile of each block
    log_every: PositiveInt = 1
    init_from: str | None = None  # published weights or a checkpoint to start from
    reinitialise: tuple[str, ...] = ()
    """Layers that start anew instead, such as img_in: their shapes may differ from init_from's."""

    def __post_init__(self) -> None:
        if self.reinitialise and self.init_from is None:
            raise ValueError(
                f"reinitialise names layers ({', '.join(self.reinitialise)}), but without "
                "init_from all are new: set init_from, or reinitialise to []"
            )


@config
class Recipe:
    name: str
    run_dir: str
    seed: NonNegativeInt = 42
    model: Annotated[MMDiTConfig, Presets(PRESETS)]
    autoencoder: AutoencoderConfig
    text: TextConfig
    data: DataConfig
    flow: FlowConfig = FlowConfig()
    conditions: ConditionConfig = ConditionConfig()
    optim: OptimConfig = OptimConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    parallel: ParallelConfig = ParallelConfig()
    recompute: Annotated[RecomputeConfig, Presets({"auto": RecomputeConfig(auto=True)})] = (
        RecomputeConfig()
    )
    offload: OffloadConfig = OffloadConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    validate: ValidateConfig = ValidateConfig()
    log: LogConfig = LogConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()

    def __post_init__(self) -> None:
        counts = self.recompute.dual, self.recompute.single, self.offload.dual, self.offload.single
        if self.recompute.auto and (any(counts) or self.offload.inputs):
            raise ValueError(
                "recompute is auto, which chooses what to recompute and to offload: leave "
                "recompute.dual, recompute.single, offload.dual and offload.single at 0 and "
                "offload.inputs at false"
            )
        try:
            named_tensors(self.model, self.train.reinitialise)
        except UserError as error:
            raise ValueError(f"train.reinitialise: {error}") from error
        if self.conditions.given_weight != 1 and not self.model.cond_embed:
            raise ValueError(
                f"conditions.given_weight is {self.conditions.given_weight:g}, but a model with "
                "cond_embed false is given no frames: set model.cond_embed=true or "
                "conditions.given_weight=1"
            )
        if self.sample.image_model is not None and not self.model.cond_embed:
            raise ValueError(
                "sample.image_model draws a first frame, but a model with cond_embed false takes "
                "none: set model.cond_embed=true or sample.image_model=null"
            )
        if self.alignment.weight:
            blocks = self.model.depth + self.model.depth_single_blocks
            if self.alignment.layer > blocks:
                raise ValueError(
                    f"alignment.layer is {self.alignment.layer}: the model has {blocks} blocks"
                )
            if self.data.latents is not None:
                raise ValueError(
                    "alignment looks at the clips' frames, which data.latents does not hold: set "
                    "data.latents=null, or alignment.weight=0"
                )

    def block_memory(self) -> tuple[BlockMemory, ...] | None:
        """What each block keeps, in the order they run; None: to be chosen."""
        if self.recompute.auto:
            return None
        return arrange(
            (self.model.depth, self.model.depth_single_blocks),
            (self.recompute.dual, self.recompute.single),
            (self.offload.dual, self.offload.single),
            inputs_sent=self.offload.inputs,
            products=self.offload.what == "products",
        )
