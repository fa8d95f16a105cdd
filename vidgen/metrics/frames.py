"""What every measure takes: one video's frames (T, H, W, C), uint8, numpy or torch.

A measure returns float64: one figure a frame, or one a pair of neighbouring frames. It runs where
a tensor lies; arrays are measured on the CPU.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Frames = NDArray[np.uint8] | Tensor
LUMA = (0.299, 0.587, 0.114)  # BT.601


def frames_THWC(video: Frames) -> Tensor:
    """The frames as a tensor; refuses another shape or dtype."""
    if isinstance(video, np.ndarray):
        video = torch.from_numpy(np.ascontiguousarray(video))
    frames = video
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"frames are {frames.dtype} {tuple(frames.shape)}; expected uint8 (T, H, W, 3)"
        )
    return frames


def is_frames(video: Frames) -> bool:
    """Whether it is a video's uint8 frames, and not a batch of float pixels."""
    return video.dtype in (np.uint8, torch.uint8)


def luma_THW(video: Frames) -> Tensor:
    """Brightness, 0 to 255."""
    frames = frames_THWC(video).double()
    return frames @ frames.new_tensor(LUMA)
