"""From a video's size to its latent grid, and what is said about sizes that have none."""

from types import SimpleNamespace
from typing import Any

import pytest

from vidgen.models.autoencoder import latent_grid

CAUSAL: Any = SimpleNamespace(compression=(4, 8, 8), causal=True)
PLAIN: Any = SimpleNamespace(compression=(4, 32, 32), causal=False)


def test_grids() -> None:
    assert latent_grid(CAUSAL, 1, 8, 16) == (1, 1, 2)
    assert latent_grid(CAUSAL, 5, 64, 64) == (2, 8, 8)
    assert latent_grid(CAUSAL, 129, 576, 1024, patch=2) == (33, 72, 128)
    assert latent_grid(PLAIN, 128, 768, 1344) == (32, 24, 42)
    assert latent_grid(PLAIN, 1, 32, 32) == (1, 1, 1)  # an image


@pytest.mark.parametrize(
    ("ae", "frames", "message"),
    [
        (CAUSAL, 128, r"128 frames: this autoencoder takes 4k\+1; the nearest are 125 and 129"),
        (CAUSAL, 2, r"the nearest are 1 and 5"),
        (CAUSAL, 0, r"the nearest is 1$"),
        (CAUSAL, -7, r"the nearest is 1$"),
        (PLAIN, 129, r"1 or a multiple of 4 from 8 on; the nearest are 128 and 132"),
        (PLAIN, 3, r"the nearest are 1 and 8"),
        (PLAIN, 4, r"the nearest are 1 and 8"),
        (PLAIN, 0, r"the nearest is 1$"),
    ],
)
def test_the_nearest_frame_counts_are_named(ae: Any, frames: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent_grid(ae, frames, 64, 64)


@pytest.mark.parametrize(
    ("height", "width", "patch", "message"),
    [
        (60, 64, 1, "height 60 is not a multiple of 8; the nearest are 56 and 64"),
        (64, 75, 2, "width 75 is not a multiple of 16; the nearest are 64 and 80"),
        (64, 72, 2, "width 72 is not a multiple of 16; the nearest are 64 and 80"),
        (8, 64, 2, "height 8 is not a multiple of 16; the nearest is 16"),
        (64, 0, 1, "width 0 is not a multiple of 8; the nearest is 8"),
        (-9, 64, 1, "the nearest is 8"),
    ],
)
def test_the_nearest_sides_are_named(height: int, width: int, patch: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent_grid(CAUSAL, 5, height, width, patch)


@pytest.mark.parametrize("ae", [CAUSAL, PLAIN])
def test_what_is_named_is_taken(ae: Any) -> None:
    for frames in range(-3, 12):
        try:
            latent_grid(ae, frames, 64, 64)
        except ValueError as error:
            for near in str(error).split("nearest")[1].replace("is", "").split():
                if near.isdigit():
                    latent_grid(ae, int(near), 64, 64)
