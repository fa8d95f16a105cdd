"""Videos made by hand, whose figures follow from the definitions."""

import pytest
import torch
from torch import Tensor

from vidgen.metrics.temporal import change, flicker


def grey(*levels: int) -> Tensor:
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 4, 6, 3)


def test_change_is_the_mean_absolute_difference() -> None:
    assert change(grey(10, 10, 40, 0)).tolist() == [0, 30, 40]
    video = grey(0, 0).clone()
    video[1, :, :3] = 100  # half of the picture
    assert change(video).tolist() == [50]


def test_flicker_sees_a_flash_and_no_fade_or_movement() -> None:
    assert flicker(grey(10, 10, 40, 10, 10)).tolist() == pytest.approx([15, 30, 15])
    assert flicker(grey(0, 20, 40, 60)).tolist() == pytest.approx([0, 0])
    moving = torch.zeros(4, 4, 6, 3, dtype=torch.uint8)
    for at in range(4):
        moving[at, :, at] = 200
    assert flicker(moving).tolist() == pytest.approx([0, 0])
    assert (change(moving) > 50).all()
