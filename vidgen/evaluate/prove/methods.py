"""Ways of sampling the same model: fewer steps, other solvers, and deliberate damage."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vidgen.diffusion.solvers import SOLVERS
from vidgen.errors import UserError
from vidgen.models.mmdit.model import Stream
from vidgen.runtime.attention.mask import K_BLOCK, Q_BLOCK, BlockMask
from vidgen.sample import Pipeline
from vidgen.sample.hooks import Hooks, ModelPass

CAPTIONS = ("own", "shuffled", "none")


@dataclass(frozen=True)
class Method:
    """`solver:steps`, and with `+` one or more of guidance:G, bits:N, drop:BLOCK, mask:SHARE,
    captions:shuffled or captions:none."""

    name: str
    solver: str = "euler"
    steps: int = 50
    guidance: float | None = None  # None: the recipe's
    bits: int | None = None  # weights of matrices rounded to so many
    drop: int | None = None  # a block left out
    mask: float | None = None  # share of the attention blocks masked at random
    captions: str = "own"


# What must be worse than the reference, in this order within each group. Damage is done at 20
# steps, and compared with euler:20.
LADDER = (
    *("euler:50", "euler:20", "euler:10", "euler:6", "euler:4", "euler:2", "euler:1"),
    *("captions:shuffled+euler:20", "captions:none+euler:20"),
    *("heun:10", "heun:5", "heun:2", "rf_taylor:10", "rf_taylor:5", "rf_taylor:2"),
    *("guidance:1+euler:20", "guidance:7+euler:20", "guidance:15+euler:20"),
    *("bits:8+euler:20", "bits:4+euler:20", "bits:3+euler:20"),
    *("drop:4+euler:20", "mask:0.5+euler:20", "mask:0.9+euler:20"),
)


def parse(text: str) -> Method:
    """A method by name, such as "euler:4", "bits:4" or "heun:10+guidance:7"."""
    method = Method(text)
    for part in text.split("+"):
        key, _, value = part.partition(":")
        try:
            if key in SOLVERS:
                method = replace(method, solver=key, steps=_positive(int(value)))
            elif key == "captions" and value in CAPTIONS:
                method = replace(method, captions=value)
            elif key == "bits":
                method = replace(method, bits=int(value))
            elif key == "drop":
                method = replace(method, drop=int(value))
            elif key == "guidance":
                method = replace(method, guidance=float(value))
            elif key == "mask":
                method = replace(method, mask=float(value))
            else:
                raise ValueError
        except ValueError:
            raise UserError(
                f"method {text!r}: {part!r} is none of {', '.join(f'{s}:STEPS' for s in SOLVERS)}, "
                "guidance:G, bits:N, drop:BLOCK, mask:SHARE, captions:shuffled, captions:none"
            ) from None
    return method


def _positive(value: int) -> int:
    if value < 1:
        raise ValueError
    return value


@contextmanager
def applied(method: Method, pipeline: Pipeline) -> Iterator[None]:
    """The pipeline with the method's damage to model and attention, whole again afterwards."""
    before, hooks = None, pipeline.hooks
    if method.bits is not None:
        before = {name: p.detach().clone() for name, p in pipeline.model.named_parameters()}
        round_weights(pipeline.model, method.bits)
    pipeline.hooks = Hooks(
        inject=None if method.drop is None else _dropping(method.drop),
        mask=None if method.mask is None else _masking(method.mask, pipeline),
    )
    try:
        yield
    finally:
        pipeline.hooks = hooks
        if before is not None:
            with torch.no_grad():
                for name, p in pipeline.model.named_parameters():
                    p.copy_(before[name])


@torch.no_grad()
def round_weights(model: torch.nn.Module, bits: int) -> None:
    """Matrices to `bits` with one scale a row, symmetric about zero."""
    levels = 2 ** (bits - 1) - 1
    for p in model.parameters():
        if p.dim() == 2:
            scale = p.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / levels
            p.copy_((p / scale).round().clamp(-levels, levels) * scale)


def _dropping(dropped: int):  # type: ignore[no-untyped-def]
    def inject(current: ModelPass, block: int, stream: Stream) -> Stream | None:
        return stream if block == dropped else None

    return inject


def _masking(share: float, pipeline: Pipeline):  # type: ignore[no-untyped-def]
    heads = pipeline.model.config.num_heads

    def mask(current: ModelPass, block: int) -> BlockMask:
        t, h, w = current.grid
        length = current.text_length + t * h * w
        rows, cols = -(-length // Q_BLOCK), -(-length // K_BLOCK)
        generator = torch.Generator().manual_seed(1000 * current.evaluation + block)
        drawn: Tensor = torch.rand(1, heads, rows, cols, generator=generator)
        keep = drawn >= share
        keep.scatter_(3, drawn.argmax(dim=3, keepdim=True), True)  # a query needs some key
        return BlockMask(keep)

    return mask
