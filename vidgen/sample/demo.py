"""The shipped demo model, and naming it where a checkpoint is asked for."""

from pathlib import Path

import torch

from vidgen import demo
from vidgen.errors import UserError
from vidgen.recipe import library, read_recipe
from vidgen.sample.pipeline import Pipeline

NAME = "demo"
# The bucket trained on most, whose size a request has that names none.
USUAL = '{"96px_ar1:1": {"16": {"batch": 16}}}'


def is_demo(source: str) -> bool:
    """Whether `demo` means the shipped model: a file or folder of that name comes first."""
    return source == NAME and not Path(source).exists()


def open_demo(
    device: str | torch.device = "auto", *, folder: Path = demo.FOLDER, memory: int | None = None
) -> Pipeline:
    """A pipeline of the shipped weights; needs no network and no training."""
    weights, autoencoder = folder / demo.GENERATOR, folder / demo.AUTOENCODER
    for path in (weights, autoencoder):
        if not path.is_file():
            raise UserError(f"{path} is missing from this installation: reinstall vidgen")
    overrides = [f"autoencoder.path={autoencoder}", f"data.buckets={USUAL}"]
    recipe = read_recipe(library.folder() / "demo.yaml", overrides)
    return Pipeline.from_weights(weights, recipe, device, memory=memory)


def open_source(source: str, device: str | torch.device = "auto") -> Pipeline:
    """`demo`, a run or one step of it."""
    return open_demo(device) if is_demo(source) else Pipeline.from_checkpoint(source, device)
