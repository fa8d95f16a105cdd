"""How a video changes from frame to frame."""

from torch import Tensor

from vidgen.metrics.frames import Frames, frames_THWC, luma_THW


def change(video: Frames) -> Tensor:
    """Mean absolute difference of neighbouring frames in levels of 255, (T - 1,).

    VBench's temporal flickering is (255 - change.mean()) / 255.
    """
    frames = frames_THWC(video).double()
    return frames.diff(dim=0).abs().mean(dim=(1, 2, 3))


def flicker(video: Frames) -> Tensor:
    """How far each frame's mean brightness lies from the mean of its neighbours', (T - 2,).

    In levels of 255. Steady fades and things that move inside the picture do not count.
    """
    mean = luma_THW(video).mean(dim=(1, 2))
    return (mean[1:-1] - (mean[:-2] + mean[2:]) / 2).abs()
