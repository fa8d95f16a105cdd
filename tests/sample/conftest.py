"""A small model with random weights, and files to refer to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidgen.data.read.video import write_image, write_video
from vidgen.models.build import build_autoencoder, build_text
from vidgen.models.mmdit import MMDiT
from vidgen.recipe import for_sampling
from vidgen.runtime.lazy import Lazy
from vidgen.sample.pipeline import Parts, Pipeline

RECIPE: dict[str, Any] = {
    "name": "small",
    "model": {
        "in_channels": 96,
        "hidden_size": 32,
        "num_heads": 2,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [4, 6, 6],
        "vec_in_dim": 16,
        "context_in_dim": 16,
    },
    "autoencoder": {"kind": "block_dct"},
    "text": {"length": 12, "token_width": 16, "pooled_width": 16},
    "data": {
        "manifest": "clips.parquet",
        "buckets": {"32px_ar1:1": {"1": {"batch": 1}, "5-9": {"batch": 1}}},
    },
    "sample": {"steps": 4, "oscillate_after": 1},
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {
        key: merged(value, changes.get(key, {}))
        if isinstance(value, dict) and key not in ("buckets",)
        else changes.get(key, value)
        for key, value in {**changes, **base}.items()
    }


@pytest.fixture
def recipe() -> Callable[..., dict[str, Any]]:
    """The small recipe, with changes: recipe(model={"cond_embed": False})."""
    return lambda **changes: merged(RECIPE, changes)


def small_pipeline(**changes: Any) -> Pipeline:
    recipe = for_sampling(merged(RECIPE, changes))
    generator = torch.Generator().manual_seed(0)
    model = MMDiT(recipe.model)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(0.2 * torch.randn(param.shape, generator=generator))
    cpu = torch.device("cpu")
    return Pipeline(
        recipe,
        Parts(
            Lazy.of(model.eval().requires_grad_(False)),
            Lazy.of(build_autoencoder(recipe.autoencoder, cpu, torch.float32)),
            Lazy.of(build_text(recipe.text, cpu, torch.float32)),
        ),
        device=cpu,
        dtype=torch.float32,
        source="small step-000000007",
    )


@pytest.fixture
def make_pipeline() -> Callable[..., Pipeline]:
    return small_pipeline


@pytest.fixture
def pipeline(make_pipeline: Callable[..., Pipeline]) -> Pipeline:
    return make_pipeline()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`left` and `right`: pictures; `clip`: 40 frames, brighter from frame to frame."""
    folder: Path = tmp_path_factory.mktemp("references")
    found = {}
    for name, column in (("left", 0), ("right", 16)):
        picture = np.full((32, 32, 3), 40, np.uint8)
        picture[:, column : column + 16] = (200, 60, 120)
        found[name] = str(folder / f"{name}.png")
        write_image(found[name], picture)
    ramp = (
        np.zeros((40, 32, 48, 3), np.uint8)
        + (20 + 5 * np.arange(40, dtype=np.uint8))[:, None, None, None]
    )
    found["clip"] = str(folder / "clip.mp4")
    write_video(found["clip"], ramp, fps=24)
    (folder / "notes.txt").write_text("not a picture")
    found["notes"] = str(folder / "notes.txt")
    return found
