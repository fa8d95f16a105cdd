import numpy as np
import pytest
import torch

from vidgen.metrics.frames import frames_THWC, is_frames, luma_THW


def test_arrays_and_tensors_are_taken_alike() -> None:
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    assert torch.equal(frames_THWC(video[:, ::-1]), torch.from_numpy(video[:, ::-1].copy()))
    assert torch.equal(luma_THW(video), luma_THW(torch.from_numpy(video)))
    assert is_frames(video)
    assert not is_frames(torch.zeros(1, 3, 2, 4, 4))


def test_brightness_weighs_green_most_and_white_is_255() -> None:
    colours = torch.eye(3, dtype=torch.uint8)[None, None] * 255
    red, green, blue = luma_THW(colours)[0, 0].tolist()
    assert (red, green, blue) == pytest.approx((76.245, 149.685, 29.07))
    assert luma_THW(torch.full((1, 1, 1, 3), 255, dtype=torch.uint8)).item() == pytest.approx(255)


@pytest.mark.parametrize(
    "video",
    [
        torch.zeros(2, 4, 4, 3),
        torch.zeros(4, 4, 3, dtype=torch.uint8),
        np.zeros((2, 3, 4, 4), "u1"),
    ],
)
def test_others_are_refused(video: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(T, H, W, 3\)"):
        frames_THWC(video)
